"""What the configuration of an SAELens folder says, in the names and places of version 6, whatever version wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from gemscope.checked import Positive
from gemscope.features.files.transformer_lens import Said
from gemscope.features.weights import Norm

CONFIG = "cfg.json"

WEIGHTS = "sae_weights.safetensors"

SCALER = "activation_scaler.json"

WHITENING = "activation_whitening.safetensors"

CROSSCODER = "crosscoder"
"""What our own folders for several sites say in the place of an architecture; see `crosscoder.py`."""

_KEPT = (
    "model_class_name", "model_from_pretrained_kwargs", "exclude_special_tokens", "seqpos_slice", "dataset_path",
    "sae_lens_training_version", "training_architecture", "training_architecture_details", "num_dead_features",
)  # fmt: skip
"""Metadata that SAEInfo has no field for, kept from version-5 folders, where it lies among all else."""

OWN = frozenset(
    ("model_name", "hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out", "hook_head_index",
     "hook_head_index_out", "prepend_bos", "context_size", "neuronpedia_id", "l0", "sae_lens_version",
     "encoder_is_centred")
)  # fmt: skip
"""Metadata that has its place in SAE or SAEInfo."""

NORMS: Mapping[Norm, str] = {"deviation": "layer_norm", "length": "constant_norm_rescale"}
"""What each token is divided by, and what SAELens calls it; before the first the token's mean is taken away, too."""

Factor = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What version 6 says of the model and the text, as far as it is used here."""

    model_name: str | None = None
    model_class_name: str | None = None
    model_from_pretrained_kwargs: Said | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    hf_hook_name: str | None = None
    hf_hook_name_out: str | None = None
    hook_head_index: int | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    neuronpedia_id: str | None = None
    l0: float | None = None
    norm_scaling_factor: Factor | None = None
    sae_lens_version: str | None = None
    sae_lens_training_version: str | None = None
    encoder_is_centred: bool = False
    """Our own: `Processing.undone_before`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`cfg.json` in the names and places of version 6, as far as it is used here."""

    architecture: str
    apply_b_dec_to_input: bool
    metadata: Metadata
    d_in: Positive | None = None
    d_sae: Positive | None = None
    d_out: Positive | None = None
    k: Factor | None = None
    """A whole number for `topk`; that of a `batchtopk` run need not be one."""
    activation_fn: str | None = None
    normalize_activations: str | None = None
    norm_scaling_factor: Factor | None = None
    reshape_activations: str | None = None
    rescale_acts_by_decoder_norm: bool | None = None
    finetuning_scaling_factor: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """`activation_scaler.json` beside a checkpoint."""

    scaling_factor: Factor | None = None
    has_whitening: bool = True


def modernised(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the names and places of version 6, whatever version wrote it."""
    metadata: dict[str, Any] = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    defaults: dict[str, Any] = {"architecture": "standard", "apply_b_dec_to_input": True}
    if metadata and not _is_before_6(config.get("sae_lens_version") or metadata.get("sae_lens_version")):
        return {**defaults, **config}
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    old: dict[str, Any] = {**defaults, "prepend_bos": True}
    old |= {names.get(key, key): value for key, value in config.items()}
    if isinstance(normalize := old.get("normalize_activations"), bool):
        old["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if old["architecture"] == "standard" and old.get("activation_fn") == "topk":
        old["architecture"] = "topk"
    if old["architecture"] == "topk" and old.get("k") is None:
        given = old.get("activation_fn_kwargs")
        old["k"] = given.get("k") if isinstance(given, dict) else None
    moved = {key: value for key, value in old.items() if key in OWN or key in _KEPT}
    return old | {"metadata": moved | metadata}


def _is_before_6(version: object) -> bool:
    major = str(version or "0").partition(".")[0]
    return not major.isdecimal() or int(major[:9]) < 6
