"""gemscope: a microscope for language models. The public names, each loaded when it is first used."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    # nouns
    "LanguageModel": "activations.model",
    "Site": "activations.site",
    "Corpus": "text.corpus",
    "Document": "text.corpus",
    "Tokens": "text.tokens",
    "Activations": "activations.capture",
    "Store": "activations.store",
    "SAE": "features.sae",
    "SAEInfo": "features.sae",
    "Crosscoder": "features.crosscoder",
    "FeatureActivations": "features.activations",
    "Look": "reports.look",
    "Check": "reports.check",
    "Score": "reports.score",
    "Comparison": "reports.sweep",
    "Edit": "activations.editing",
    "Steer": "edits.steer",
    "Project": "edits.steer",
    "Cap": "edits.steer",
    "Clamp": "edits.clamp",
    "AtLeast": "edits.clamp",
    "Scale": "edits.clamp",
    "Ablate": "edits.clamp",
    "Splice": "edits.splice",
    "Replace": "edits.splice",
    "Strength": "edits.strength",
    "Units": "edits.units",
    "Steered": "reports.steer",
    "Dose": "reports.dose",
    "Attribution": "reports.attribute",
    "Probe": "reports.probe",
    "TrainingReport": "reports.training",
    "TrainConfig": "training.config",
    "Atlas": "atlas.reader",
    "Dashboard": "atlas.dashboard",
    "DescribeConfig": "atlas.describe.gather",
    # verbs
    "load_model": "activations.load",
    "load_sae": "features.load",
    "save_sae": "features.files.saelens",
    "load_crosscoder": "features.files.crosscoder",
    "save_crosscoder": "features.files.crosscoder",
    "catalog": "features.catalog",
    "look": "reports.look",
    "check": "reports.check",
    "score": "reports.score",
    "compare": "reports.sweep",
    "steer": "reports.steer",
    "attribute": "reports.attribute",
    "sparse_probe": "reports.probe",
    "describe": "atlas.describe.run",
    "merge": "atlas.describe.merge",
    "serve": "app.server",
    "export": "atlas.exchange.verbs",
    "import_atlas": "atlas.exchange.verbs",
    "harvest": "activations.harvest",
    "train": "training.train",
    "training_report": "reports.training",
}
"""Public name → the module that holds it. The one list; `__init__.pyi` says the same to type checkers."""

__all__ = ["__version__", "errors", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("gemscope.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'gemscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gemscope.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
