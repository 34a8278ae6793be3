"""An SAE written as an SAELens 6 folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from gemscope.disk import claimed, room, synced
from gemscope.errors import InputError
from gemscope.features.files.fold import times
from gemscope.features.files.hook_names import hook_of, module_of, scales_embedding
from gemscope.features.files.json_file import write_json
from gemscope.features.files.saelens_config import CONFIG, OWN, WEIGHTS
from gemscope.features.files.tensors import DTYPES, Stream, dtype_for, stream_of, write_safetensors
from gemscope.features.sae import SAE

_FORMAT_VERSION = "6.54.12"
"""The SAELens whose format is written."""

_KWARGS = "model_from_pretrained_kwargs"


def save_sae(sae: SAE, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes an SAE as an SAELens 6 folder, which SAELens and `load_sae` read. Returns the folder.

    `dtype` is what the matrices are stored in; biases and thresholds never below float32, where rounding would move
    features across their threshold. Files of the same name are replaced when the new ones are whole; others in the
    folder stay.

    Raises InputError for an SAE without a site, StorageFull, FileError.
    """
    folder = Path(folder).expanduser()
    if sae.site is None or sae.site_out is None:
        raise InputError(f"{sae} has no site: a folder says where its SAE reads; give SAE(..., site='20.res')")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"weights cannot be stored as {dtype}: choose one of {', '.join(map(str, DTYPES))}")
    state = sae.state_dict()
    if sae.site.layer is None and scales_embedding(sae.info.model):
        scale = math.sqrt(sae.d_in)  # TransformerLens hands the embedding out multiplied by this
        state["W_enc"] = times(state["W_enc"], 1 / scale)
        state["W_dec"] = times(state["W_dec"], scale)
        state["b_dec"] = times(state["b_dec"], scale)
    streams = {name: stream_of(weight, dtype_for(weight, dtype)) for name, weight in state.items()}
    return write_pair(folder, _config(sae, {stream.dtype for stream in streams.values()}), streams)


def write_pair(folder: Path, config: dict[str, Any], streams: Mapping[str, Stream]) -> Path:
    """A configuration and the weights that it describes, in place of those that were there. Returns the folder.

    Raises StorageFull, FileError, AccessError where another process writes it.
    """
    with claimed(folder / CONFIG) as place, room(folder, place):
        write_json(place / CONFIG, config)
        write_safetensors(place / WEIGHTS, streams)
        synced(place / WEIGHTS)
        # The two files belong together: with the configuration taken away first, a crash between them leaves a folder
        # that nobody takes for an SAE, never weights under another's description.
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(place / WEIGHTS, folder / WEIGHTS)
        os.replace(place / CONFIG, folder / CONFIG)
    return folder


def _config(sae: SAE, dtypes: set[torch.dtype]) -> dict[str, Any]:
    architecture = _architecture(sae)
    # SAELens loads every tensor as the one dtype named here.
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(widest).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site is not None and sae.site.kind == "att" else "none",
        "metadata": _metadata(sae),
        "architecture": architecture,
    }
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if architecture.endswith("transcoder"):
        config["d_out"] = sae.d_out
    return config


def _architecture(sae: SAE) -> str:
    gate: Literal["", "jumprelu", "topk"] = "" if sae.gate == "relu" else sae.gate
    if not (sae.is_transcoder or sae.W_skip is not None or sae.d_in != sae.d_out):
        return gate or "standard"
    if gate == "topk":
        raise InputError(f"{sae} is a transcoder with gate='topk', for which SAELens has no format")
    return "_".join(filter(None, (gate, "skip" if sae.W_skip is not None else "", "transcoder")))


def _metadata(sae: SAE) -> dict[str, Any]:
    info, model = sae.info, sae.info.model
    assert sae.site is not None
    assert sae.site_out is not None
    metadata: dict[str, Any] = {
        "sae_lens_version": _FORMAT_VERSION,
        "sae_lens_training_version": None,
        "model_name": model,
        "model_class_name": "HookedTransformer",
        "hook_name": hook_of(sae.site),
        "hook_head_index": None,
        "prepend_bos": info.prepend_bos,
        "context_size": info.context_size,
        "neuronpedia_id": info.neuronpedia_id,
        "l0": info.declared_l0,
    }
    if module := module_of(sae.site, model):
        metadata["hf_hook_name"] = module
    if sae.is_transcoder:
        metadata["hook_name_out"] = hook_of(sae.site_out)
        if module := module_of(sae.site_out, model):
            metadata["hf_hook_name_out"] = module
    metadata |= {key: value for key, value in info.metadata.items() if key not in OWN}
    said = metadata.get(_KWARGS)
    if sae.centred or said or metadata["sae_lens_training_version"]:
        # What TransformerLens had done to the model, as far as the SAE still reads it that way.
        now = {"center_writing_weights": sae.centred, "fold_value_biases": False}
        metadata[_KWARGS] = (said if isinstance(said, dict) else {}) | now
    return metadata | ({"encoder_is_centred": True} if sae.centred else {})
