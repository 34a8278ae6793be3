"""An SAE as SAELens 6 describes it, and its weights as SAELens has them: for a folder, and for an SAE of SAELens's own
in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from gemscope.activations.site import Site
from gemscope.errors import InputError, MissingDependency
from gemscope.features.files.fold import times
from gemscope.features.files.hook_names import hook_of, module_of, scales_embedding
from gemscope.features.files.saelens_config import NORMS, OWN
from gemscope.features.sliced import Sliced
from gemscope.features.weights import Gate, Norm

_FORMAT_VERSION = "6.54.12"
"""The SAELens whose format is written."""

_KWARGS = "model_from_pretrained_kwargs"


@runtime_checkable
class Described(Protocol):
    """What is said here of an `SAE`."""

    d_in: int
    d_sae: int
    d_out: int
    gate: Gate
    k: int | None
    centred: bool
    norm: Norm | None
    site: Site | None
    site_out: Site | None
    info: Any

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes somewhere else than it reads."""

    @property
    def tensors(self) -> Mapping[str, Sliced]:
        """Its weights."""


def weights_of(sae: Described) -> dict[str, Sliced]:
    """Its weights in the units of TransformerLens's hooks. Raises InputError for an SAE without a site."""
    if sae.site is None or sae.site_out is None:
        raise InputError(f"{sae} has no site: SAELens's say where they read; give SAE(..., site='20.res')")
    tensors = dict(sae.tensors)
    if sae.site.layer is None and scales_embedding(sae.info.model):
        scale = math.sqrt(sae.d_in)  # TransformerLens hands the embedding out multiplied by this
        for name, by in (("W_enc", 1 / scale), ("W_dec", scale), ("b_dec", scale)):
            tensors[name] = tensors[name].each(partial(times, factor=by))
    return tensors


def live(sae: Described) -> Any:
    """An SAE of SAELens's with copies of the weights, on the same device, in float32 at least: SAELens computes in the
    format that it keeps them in. Raises MissingDependency, InputError, also for an SAE in slices.
    """
    tensors = weights_of(sae)
    if len(tensors["W_enc"].slices) > 1:
        raise InputError(f"{sae}: SAELens's lie on one device; load it on one, as in load_sae(..., device='cpu')")
    state = {
        name: weight.slices[0].to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name, weight in tensors.items()
    }
    config = config_of(sae, {weight.dtype for weight in state.values()})
    try:
        import sae_lens
    except ImportError as error:
        raise MissingDependency("SAELens is not installed: pip install sae-lens") from error
    # Made without weights: drawing some would move everybody's random numbers.
    made = sae_lens.SAE.from_dict({**config, "device": "meta"})
    made.load_state_dict(state, assign=True)
    device = state["W_enc"].device
    made.cfg.device = str(device)
    return made.to(device=device, dtype=getattr(torch, config["dtype"]))


def config_of(sae: Described, dtypes: set[torch.dtype]) -> dict[str, Any]:
    """`cfg.json`, for weights in these number formats. Raises InputError for what SAELens has no architecture for."""
    architecture = _architecture(sae)
    # SAELens loads every tensor as the one dtype named here.
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(widest).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": _normalised(sae),
        "reshape_activations": "hook_z" if sae.site is not None and sae.site.kind == "att" else "none",
        "metadata": _metadata(sae),
        "architecture": architecture,
    }
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if architecture.endswith("transcoder"):
        config["d_out"] = sae.d_out
    return config


def _normalised(sae: Described) -> str:
    if sae.norm is None:
        return "none"
    if sae.centred != (sae.norm == "deviation"):
        raise InputError(
            f"{sae} divides by a norm {'without' if sae.centred else 'with'} the mean: SAELens has none such"
        )
    return NORMS[sae.norm]


def _architecture(sae: Described) -> str:
    gate: Literal["", "jumprelu", "topk"] = "" if sae.gate == "relu" else sae.gate
    skip = "W_skip" in sae.tensors
    if not (sae.is_transcoder or skip or sae.d_in != sae.d_out):
        return gate or "standard"
    if gate == "topk":
        raise InputError(f"{sae} is a transcoder with gate='topk', for which SAELens has no format")
    return "_".join(filter(None, (gate, "skip" if skip else "", "transcoder")))


def _metadata(sae: Described) -> dict[str, Any]:
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
    by_transformer_lens = sae.centred and sae.norm is None  # otherwise its own norm does it
    if by_transformer_lens or said or metadata["sae_lens_training_version"]:
        # What TransformerLens had done to the model, as far as the SAE still reads it that way.
        now = {"center_writing_weights": by_transformer_lens, "fold_value_biases": False}
        metadata[_KWARGS] = (said if isinstance(said, dict) else {}) | now
    return metadata | ({"encoder_is_centred": True} if sae.centred else {})
