"""What a file of any format holds, once read: weights under our names, and what they are for. Turned into an SAE here,
after everything that can be wrong with weights has been looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gemscope.activations.memory import put
from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, NotFinite
from gemscope.features.entry import Entry
from gemscope.features.files.tensors import dtype_for
from gemscope.features.mapped import Mapped, release
from gemscope.features.sae import OF_FEATURES, SAE, SAEInfo
from gemscope.features.weights import Gate, Norm

_PIECE = 1 << 22
"""Numbers looked at at a time."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Weights as SAE names and orients them, and the rest of what an SAE needs."""

    source: str
    """The file or address, for messages."""
    tensors: Mapping[str, Tensor]
    gate: Gate = "jumprelu"
    k: int | None = None
    centred: bool = False
    norm: Norm | None = None
    site: Site | None
    site_out: Site | None = None
    info: SAEInfo = field(default_factory=SAEInfo)
    writes: bool = True
    """False for what only reads, and writes nothing: d_out is 0."""


def build(contents: Contents, *, dtype: torch.dtype | None, devices: Sequence[torch.device]) -> SAE:
    """The SAE, on one device or in slices on several, to which they go one after the other. Weights that have the dtype
    already stay what they are, mapped from the disk where they were mapped.

    Raises CorruptFile for weights that are missing, unknown or of the wrong shape, NotFinite for NaN and Inf,
    OutOfMemory where a device has no room for them, InputError for more devices than features.
    """
    d_in, d_sae, d_out = _sizes(contents)
    for name, tensor in contents.tensors.items():
        _require_finite(tensor, name, contents.source)
    sae = SAE(
        d_in,
        d_sae,
        d_out,
        gate=contents.gate,
        k=contents.k,
        skip="W_skip" in contents.tensors,
        centred=contents.centred,
        norm=contents.norm,
        site=contents.site,
        site_out=contents.site_out,
        info=contents.info,
        device=["meta"] * len(devices),
    )
    shared = {
        name: _cast(tensor, dtype, name, contents.source)
        for name, tensor in contents.tensors.items()
        if name not in OF_FEATURES
    }
    for part, features, device in zip(sae.slices, sae.encoder.spans, devices, strict=True):
        own = {
            name: _cast(tensor.narrow(OF_FEATURES[name], features.start, part.d_sae), dtype, name, contents.source)
            for name, tensor in contents.tensors.items()
            if name in OF_FEATURES
        }
        without = {"b_dec": torch.zeros_like(shared["b_dec"])}
        part.load_state_dict(own | (shared if part is sae else without), assign=True)
        put(part, device, contents.source, smaller=partial(_narrower, part))
        for name in own:
            release(contents.tensors[name])
    if sae.parts:
        placed = {name: tensor.to(devices[0]) for name, tensor in shared.items()}
        sae.load_state_dict(placed, strict=False, assign=True)
    return sae


def _narrower(part: SAE, free: int) -> str:
    every = sum(weight.nbytes for weight in part.parameters() if part.d_sae in weight.shape)
    rest = sum(weight.nbytes for weight in part.parameters()) - every
    fitting = max(0, free - rest) * part.d_sae // every
    return f"an SAE of up to {fitting:,} such features fits, of {part.d_sae:,}; or put this one on"


def info_of(entry: Entry | None, source: str) -> SAEInfo:
    """What the names of a published SAE say."""
    if entry is None:
        return SAEInfo(name=source)
    l0 = None if entry.l0 is None else float(entry.l0)
    return SAEInfo(name=source, model=entry.model, declared_l0=l0, neuronpedia_id=entry.neuronpedia_id)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The same tensors, with the names given changed."""
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _sizes(contents: Contents) -> tuple[int, int, int]:
    """d_in, d_sae, d_out, once every shape is what they make it."""
    tensors, source = contents.tensors, contents.source
    wanted = ["W_enc", "b_enc", "W_dec", "b_dec"] + (["threshold"] if contents.gate == "jumprelu" else [])
    if missing := [name for name in wanted if name not in tensors]:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise CorruptFile(f"{source} has no {' and no '.join(missing)}: it holds {held}")
    if unknown := sorted(set(tensors) - {*wanted, "W_skip"}):
        raise CorruptFile(
            f"{source} holds {', '.join(unknown)}, which no SAE of its kind has: expected {', '.join(wanted)}"
        )
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise CorruptFile(f"{source}: {name} has the shape {tuple(tensors[name].shape)}, expected two axes")
    (d_in, d_sae), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    shapes = {
        "W_dec": (d_sae, d_out),
        "b_enc": (d_sae,),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
        "W_skip": (d_out, d_in),
    }
    if 0 in (d_in, d_sae) or (d_out == 0) is contents.writes:
        raise CorruptFile(
            f"{source}: W_enc of shape {(d_in, d_sae)} and W_dec of shape {(d_sae, d_out)} hold no weights"
        )
    for name, tensor in tensors.items():
        expected = shapes.get(name)
        if expected is not None and tuple(tensor.shape) != expected:
            raise CorruptFile(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, "
                f"expected {expected} beside W_enc of {(d_in, d_sae)}"
            )
        if not tensor.dtype.is_floating_point:
            raise CorruptFile(f"{source}: {name} is of dtype {tensor.dtype}, expected floats")
    if contents.k is not None and not 0 < contents.k <= d_sae:
        raise CorruptFile(f"{source}: k={contents.k} of {d_sae} features, expected 1 to {d_sae}")
    return d_in, d_sae, d_out


def _require_finite(tensor: Tensor, name: str, source: str) -> None:
    if not _is_finite(tensor):
        raise NotFinite(f"{source}: {name} holds NaN or Inf: the file is damaged or comes of a run that failed")


def _cast(tensor: Tensor, dtype: torch.dtype | None, name: str, source: str) -> Tensor:
    """The tensor as it is kept when `dtype` is asked for, when it fits."""
    cast = tensor.to(dtype_for(tensor, dtype))
    if cast.dtype.itemsize < tensor.dtype.itemsize and not _is_finite(cast):
        raise NotFinite(f"{source}: {name} does not fit {cast.dtype}, its values are too large: load it as float32")
    return cast


def _is_finite(tensor: Tensor) -> bool:
    """Piece by piece, so that a map of 19 GB is read, and neither copied nor held."""
    if not tensor.numel():
        return True
    mapping = Mapped.of(tensor) if tensor.numel() > _PIECE else None
    if tensor.ndim > 1 and not tensor.is_contiguous():
        tensor = tensor.T  # along the disk's order
    rows = max(1, _PIECE // max(1, tensor[0].numel())) if tensor.ndim > 1 else _PIECE
    for piece in torch.split(tensor, rows):
        low, high = piece.aminmax()  # NaN comes through, and no temporary of the piece's size is made
        if mapping is not None:
            mapping.release()
        if not (low.isfinite() and high.isfinite()):
            return False
    return True
