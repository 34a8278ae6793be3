"""SAEDashboard's output, before it is converted to Neuronpedia's lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.exchange.neuronpedia.lines import batches_in, index_of, kept, take_activation
from gemscope.atlas.exchange.numbers import as_whole, object_of
from gemscope.checked import bytes_of, quoted
from gemscope.errors import CorruptFile
from gemscope.progress import Progress

_BATCHED = 1 << 30
"""Bytes of a batch that is one document."""


def read(place: Path, intake: Intake, progress: Progress) -> tuple[dict[str, Any], object, list[int]]:
    """Returns what a source's row would say, its model's id, and features that were left out on purpose."""
    files = [path for path in batches_in(place) if path.suffix == ".json"]
    first: dict[str, Any] = {}
    with progress("read", len(files), "files") as advance:
        for file in files:
            batch = object_of(bytes_of(file, most=_BATCHED), str(file))
            first = first or {key: value for key, value in batch.items() if key != "features"}
            features = batch.get("features")
            if not isinstance(features, list):
                raise CorruptFile(f"{file} has no list of features: expected SAEDashboard's batch-N.json")
            for number, row in enumerate(features):
                where = f"{file}, feature {number}"
                if not isinstance(row, dict):
                    raise CorruptFile(f"{where} is a {type(row).__name__}, expected a JSON object")
                index = index_of(row, "feature_index", where)
                intake.feature(index, kept(row))
                for field in ("n_prompts_total", "n_tokens_in_prompt", "dataset"):
                    first.setdefault(field, row.get(field))
                activations = row.get("activations") or []
                if not isinstance(activations, list):
                    raise CorruptFile(f"{where}: activations is {quoted(activations)}, expected a list")
                for activation in activations:
                    take_activation(intake, _camel(activation, where) | {"index": index}, where, None)
            advance(1)
    skipped = place / "skipped_indexes.json"
    settings = place / "run_settings.json"
    said = object_of(bytes_of(settings, most=_BATCHED), str(settings)) if settings.exists() else {}
    return _as_source(first, said), first.get("model_id"), _skipped(skipped) if skipped.exists() else []


def _skipped(path: Path) -> list[int]:
    found = object_of(bytes_of(path, most=_BATCHED), str(path)).get("skipped_indexes", [])
    if not isinstance(found, list) or any(as_whole(one) is None for one in found):
        raise CorruptFile(f"{path}: skipped_indexes is no list of numbers")
    return found


def _as_source(batch: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    layer, name, suffix = batch.get("layer"), batch.get("sae_set"), batch.get("sae_id_suffix")
    said = batch | {key: value for key, value in settings.items() if value is not None}
    return {
        "id": f"{layer}-{name}" + (f"__{suffix}" if suffix else ""),
        "modelId": batch.get("model_id"),
        "setName": name,
        "dataset": said.get("dataset") or said.get("huggingface_dataset_path"),
        "num_prompts": said.get("n_prompts_total"),
        "num_tokens_in_prompt": said.get("n_tokens_in_prompt"),
    }


def _camel(activation: object, where: str) -> dict[str, Any]:
    if not isinstance(activation, dict):
        raise CorruptFile(f"{where}: an activation is a {type(activation).__name__}, expected a JSON object")
    names = {
        "bin_min": "binMin",
        "bin_max": "binMax",
        "bin_contains": "binContains",
        "qualifying_token_index": "qualifyingTokenIndex",
    }
    return {names.get(key, key): value for key, value in activation.items()}
