"""The model and the SAE that an atlas names, from this machine: nobody on the network is asked."""

from __future__ import annotations

from gemscope.activations.bundled import SMOLLM2, smollm2_folder
from gemscope.activations.load import load_model
from gemscope.activations.model import LanguageModel
from gemscope.atlas.files.manifest import Manifest
from gemscope.errors import InputError, MissingDependency
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE


class Nearby:
    """Finds what a manifest names: what ships with this package, a path here, or what the Hub's cache has.

    Each model is loaded once, however many atlases name it.
    """

    def __init__(self, model: LanguageModel | str | None = None, sae: SAE | str | None = None) -> None:
        """With a model or an SAE in the place of the manifest's. By name it may come from the Hub: it was asked for."""
        self._model = model
        self._sae = sae
        self._models: dict[tuple[str, str | None], LanguageModel] = {}

    def __call__(self, manifest: Manifest) -> tuple[LanguageModel, SAE]:
        """Raises what `load_model` and `load_sae` raise."""
        model = self._find_model(manifest)
        return model, self._find_sae(manifest, model)

    def _find_model(self, manifest: Manifest) -> LanguageModel:
        if isinstance(self._model, LanguageModel):
            return self._model
        named = self._model
        key = (manifest.model, manifest.revision) if named is None else (named, None)
        if key not in self._models:
            name, revision = ("smollm2", None) if _is_bundled(key[0]) else key
            self._models[key] = load_model(name, revision=revision, offline=True if named is None else None)
        return self._models[key]

    def _find_sae(self, manifest: Manifest, model: LanguageModel) -> SAE:
        if isinstance(self._sae, SAE):
            return self._sae
        address = self._sae or manifest.sae
        if not address:
            raise InputError("this atlas names no SAE that could be loaded")
        return load_sae(address, site=manifest.site or None, model=model, offline=None if self._sae else True)


def _is_bundled(model: str) -> bool:
    """Whether it is the default model and installed; without its package it is one of the Hub's like any other."""
    if model != SMOLLM2.model:
        return False
    try:
        smollm2_folder()
    except MissingDependency:
        return False
    return True
