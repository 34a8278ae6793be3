"""What SAELens does to activations before and after the weights, folded into the weights: exactly, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.fold import (
    fold_decoder_norms,
    fold_gate,
    fold_input_bias,
    fold_scales,
    rounded,
    times,
)
from gemscope.features.files.saelens_config import CONFIG, Config


@dataclass(frozen=True)
class Whitening:
    """(x − mean) @ matrix goes into the encoder, and what comes out of the decoder is mapped back by the inverse."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


def folded(
    stored: Mapping[str, Tensor], config: Config, scale: float, whitening: Whitening | None, source: str
) -> dict[str, Tensor]:
    """The weights of an SAE that does the same on plain activations. What is not folded stays mapped from the file."""
    tensors = dict(stored)
    _drop_scaling_factor(tensors, source)
    if config.architecture == "gated":
        fold_gate(tensors)
    if "log_threshold" in tensors:
        stored_log = tensors.pop("log_threshold")
        tensors["threshold"] = rounded(stored_log.double().exp(), stored_log)
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").reshape(1).expand(tensors["W_enc"].shape[1]).contiguous()
    if config.apply_b_dec_to_input:
        _fold_input_bias(tensors, source)
    if whitening is not None:
        if config.rescale_acts_by_decoder_norm:
            _fold_decoder_norms(tensors, 1.0)  # they were learned as stored
        _fold_whitening(tensors, whitening)
        return tensors
    if scale != 1.0:
        fold_scales(tensors, scale, scale)
    if config.rescale_acts_by_decoder_norm:
        _fold_decoder_norms(tensors, scale)
    return tensors


def _fold_decoder_norms(tensors: dict[str, Tensor], scale: float) -> None:
    """Pre-activations are multiplied by their decoder row's norm, and features divided by it again: as if it were 1."""
    fold_decoder_norms(tensors)
    if "threshold" in tensors:
        # It was learned beside the norm of W_dec as stored, which `scale` has divided since.
        tensors["threshold"] = times(tensors["threshold"], 1 / scale)


def _fold_whitening(tensors: dict[str, Tensor], whitening: Whitening) -> None:
    """((x − m) M) @ W_enc = x @ (M W_enc) − m @ (M W_enc), and x̂ = (f @ W_dec + b_dec) M⁻¹ + m."""
    W_enc = whitening.matrix @ tensors["W_enc"].double()
    tensors["b_enc"] = rounded(tensors["b_enc"].double() - whitening.mean @ W_enc, tensors["b_enc"])
    tensors["W_enc"] = rounded(W_enc, tensors["W_enc"])
    tensors["W_dec"] = rounded(tensors["W_dec"].double() @ whitening.inverse, tensors["W_dec"])
    tensors["b_dec"] = rounded(tensors["b_dec"].double() @ whitening.inverse + whitening.mean, tensors["b_dec"])


def _drop_scaling_factor(tensors: dict[str, Tensor], source: str) -> None:
    """Versions before 6 wrote a factor for every feature: ones, unless the SAE was finetuned."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not factor.eq(1).all():
        raise FileError(f"{source} scales its features by a scaling_factor other than 1, which is not read here")


def require_complete(tensors: Mapping[str, Tensor], config: Config, source: str) -> None:
    """Everything that folding reads is there and fits; `build` looks at the rest."""
    gated = ["b_gate", "b_mag", "r_mag"]
    needed = ["W_enc", "W_dec", "b_dec", *(gated if config.architecture == "gated" else ["b_enc"])]
    if missing := [name for name in needed if name not in tensors]:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise CorruptFile(f"{source} has no {' and no '.join(missing)}: it holds {held}")
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    if W_enc.ndim != 2 or W_dec.ndim != 2 or W_dec.shape[0] != W_enc.shape[1]:
        raise CorruptFile(
            f"{source}: W_dec has the shape {tuple(W_dec.shape)} beside W_enc of {tuple(W_enc.shape)}, "
            "expected [d_sae, d_out] beside [d_in, d_sae]"
        )
    sizes = dict.fromkeys(("b_enc", "b_gate", "b_mag", "r_mag", "log_threshold", "threshold"), W_enc.shape[1])
    sizes["b_dec"] = W_dec.shape[1]
    for name, size in sizes.items():
        if name in tensors and tuple(tensors[name].shape) != (size,):
            raise CorruptFile(f"{source}: {name} has the shape {tuple(tensors[name].shape)}, expected {(size,)}")
    if "topk_threshold" in tensors and tensors["topk_threshold"].numel() != 1:
        raise CorruptFile(
            f"{source}: topk_threshold has the shape {tuple(tensors['topk_threshold'].shape)}, expected one number"
        )
    for key, stated, actual in zip(
        ("d_in", "d_sae", "d_out"),
        (config.d_in, config.d_sae, config.d_out),
        (*W_enc.shape, W_dec.shape[1]),
        strict=True,
    ):
        if stated not in (None, actual):
            raise CorruptFile(f"{source}: {CONFIG} says {key}={stated}, the weights have {actual}")


def _fold_input_bias(tensors: dict[str, Tensor], source: str) -> None:
    W_enc, b_dec = tensors["W_enc"], tensors["b_dec"]
    if b_dec.numel() != W_enc.shape[0]:
        raise CorruptFile(
            f"{source}: apply_b_dec_to_input takes b_dec of {b_dec.numel()} from inputs of {W_enc.shape[0]}"
        )
    fold_input_bias(tensors)
