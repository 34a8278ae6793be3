"""A transcoder written as circuit-tracer's sets have them: a file for its layer, and `config.yaml` for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gemscope.checked import declared, read_yaml
from gemscope.errors import InputError
from gemscope.features.files.circuit_tracer import CONFIG, Config
from gemscope.features.files.hook_names import hook_of
from gemscope.features.files.placed import Writing, of_streams, put
from gemscope.features.files.tensors import dtype_for, stream_of
from gemscope.features.sae import SAE


def write(sae: SAE, folder: Path, dtype: torch.dtype | None) -> Path:
    """Writes `folder`/layer_L.safetensors and `folder`/config.yaml; returns the former.

    Raises InputError for what is no transcoder of one layer, for a topk gate, an SAE that names no model, and a set
    of another model or with other places; StorageFull, FileError.
    """
    config = _config(sae)
    before = folder / CONFIG
    if before.exists() and read_yaml(before, Config) != declared(config, Config, where=str(before)):
        raise InputError(f"{before} describes another set of transcoders: give another folder")
    state = sae.tensors
    tensors = {name: state[name] for name in ("b_enc", "W_dec", "b_dec")} | {"W_enc": state["W_enc"].T}
    if sae.W_skip is not None:
        tensors["W_skip"] = state["W_skip"]
    if sae.threshold is not None:  # there z alone is held against it, and would pass where it is negative
        tensors["activation_function.threshold"] = state["threshold"].each(lambda one: one.clamp(min=0))
    streams = {name: stream_of(tensor, dtype_for(tensor, dtype)) for name, tensor in tensors.items()}
    assert sae.site is not None
    name = f"layer_{sae.site.layer}.safetensors"
    put(folder, {CONFIG: _text(_yaml(config)), name: of_streams(streams)})
    return folder / name


def _config(sae: SAE) -> dict[str, Any]:
    read, written = sae.site, sae.site_out
    if read is None or written is None or not sae.is_transcoder or read.layer is None or read.layer != written.layer:
        raise InputError(f"{sae} is no transcoder of one layer: circuit-tracer's sets hold those, one for each layer")
    if sae.gate == "topk":
        raise InputError(f"{sae} has gate='topk', which circuit-tracer has not: it has relu and jumprelu")
    if sae.info.model is None:
        raise InputError(f"{sae} names no model, which a set has to: give SAE(..., info=SAEInfo(model='owner/name'))")
    return {
        "model_kind": "transcoder_set",
        "model_name": sae.info.model,
        "feature_input_hook": hook_of(read).partition(f"blocks.{read.layer}.")[2],
        "feature_output_hook": hook_of(written).partition(f"blocks.{read.layer}.")[2],
        "scan": sae.info.model.rpartition("/")[2],
    }


def _yaml(config: dict[str, Any]) -> str:
    """Text in JSON's quotes is YAML too."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())


def _text(text: str) -> Writing:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write
