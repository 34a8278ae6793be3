"""Cross-layer transcoders in files: circuit-tracer's folders (a `config.yaml`, and `W_enc_N.safetensors` and
`W_dec_N.safetensors` a layer), and Gemma Scope 2's (`params_layer_N.safetensors`, mostly a `config.json`).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from gemscope.activations import hub
from gemscope.activations.site import Site
from gemscope.checked import existing, read_json, read_yaml
from gemscope.errors import CorruptFile, FileError, NotFinite, SAENotFound
from gemscope.features.cross_layer import CrossLayerTranscoder, Written
from gemscope.features.files import circuit_tracer
from gemscope.features.files.contents import Contents, build
from gemscope.features.files.taken import Table, floats, taken
from gemscope.features.files.tensors import read_safetensors
from gemscope.features.kernels.choice import place_for
from gemscope.features.sae import SAE, SAEInfo

_ENCODER = re.compile(r"W_enc_([0-9]{1,4})\.safetensors")
_PARAMS = re.compile(r"params_layer_([0-9]{1,4})\.safetensors")
_JSON = "config.json"
_PUBLISHED = re.compile(r"google/gemma-scope-2-[^/]+/clt/.+|(?!google/)[^/ ]+/clt-[^/ ]+")
"""Where they are on the Hub: in a folder of Gemma Scope 2's, or in repositories called so."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Gemma Scope 2's `config.json`, as far as it is used here."""

    type: str | None = None
    architecture: str = "jump_relu"
    model_name: str | None = None
    l0: float | None = None


Find = Callable[[str], Path | None]
"""A file of the folder by its name, fetched if need be."""


@dataclass(frozen=True)
class _Layer:
    """One layer, with what it writes left in its file."""

    tensors: Mapping[str, Tensor]
    """W_enc [D, F], b_enc, b_dec, and threshold or W_skip [O, D] where there is one."""
    written: Written
    site: Site
    site_out: Site


def load_clt(
    address: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    device: torch.device | str | None = "auto",
    dtype: torch.dtype | None = torch.float32,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder: a folder here, or REPO/folder on the Hub (mntss/clt-gemma-2-2b-426k,
    google/gemma-scope-2-270m-pt/clt/NAME), in circuit-tracer's files or Gemma Scope 2's.

    Encoders stay mapped from the disk where the file, `dtype` and `device` allow it. Decoders, by far the larger part,
    are neither loaded nor looked through: rows of active features are read when they are decoded, and from the Hub a
    layer's file is fetched then. The other options are as in `load_sae`.

    Raises SAENotFound, CorruptFile, FileError for what is no cross-layer transcoder or one that is not read here,
    NotFinite, HubUnreachable, GatedRepository.
    """
    name = os.fspath(address).strip().rstrip("/")
    where = place_for(device)
    here = existing(name)
    if here is not None:
        if not here.is_dir():
            raise FileError(f"{name} is a file: a cross-layer transcoder is a folder, with files of every layer")
        layers, info = _read(name, os.listdir(here), _inside(here))
        for one in layers:  # what is wrong with a file is told now, and not when its rows are read
            _ = one.written.tensor
    else:
        parts = name.split("/")
        if len(parts) < 2 or {"", ".", ".."} & set(parts) or " " in name or name.startswith("~"):
            raise SAENotFound(
                f"no cross-layer transcoder at {name!r}: expected a folder here, or REPO/folder on the Hub"
            )
        repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
        access = hub.Access(revision, token, cache_dir, offline)

        def find(file: str) -> Path | None:
            found = access.find(repo, posixpath.join(inside, file))
            return None if found is None else found[0]

        layers, info = _read(name, access.names(repo, inside), find)
    if len({one.tensors["b_dec"].numel() for one in layers}) > 1:
        raise CorruptFile(f"{name}: its layers write different numbers per token")
    return CrossLayerTranscoder(
        encoders=tuple(_encoder(one, info, where, dtype) for one in layers),
        written=tuple(one.written for one in layers),
        b_dec=tuple(_put(one, "b_dec", name, where) for one in layers),
        sites_out=tuple(one.site_out for one in layers),
        skips=tuple(_put(one, "W_skip", name, where) if "W_skip" in one.tensors else None for one in layers),
        info=info,
    )


def is_clt(address: str) -> bool:
    """Whether an address is, as far as its names tell, of a cross-layer transcoder and not of an SAE."""
    here = existing(address)
    if here is not None:
        return here.is_dir() and any(_ENCODER.fullmatch(name) or _PARAMS.fullmatch(name) for name in os.listdir(here))
    return _PUBLISHED.fullmatch(address.rstrip("/")) is not None


def _inside(folder: Path) -> Find:
    return lambda name: path if (path := folder / name).is_file() else None


def _read(source: str, names: list[str], find: Find) -> tuple[list[_Layer], SAEInfo]:
    """All layers, and what is said of them."""
    if numbers := _layers(names, _ENCODER, source):
        config = _of_circuit_tracer(find, source)
        layers = [_circuit_tracer(source, layer, len(numbers), find, config) for layer in numbers]
        return layers, SAEInfo(name=source, format="circuit-tracer", model=config.model_name)
    if numbers := _layers(names, _PARAMS, source):
        said = _of_gemma_scope(find, source)
        layers = [_gemma_scope(source, layer, len(numbers), find) for layer in numbers]
        return layers, SAEInfo(name=source, format="Gemma Scope 2", model=said.model_name, declared_l0=said.l0)
    raise SAENotFound(
        f"no cross-layer transcoder at {source!r}: expected W_enc_N.safetensors and W_dec_N.safetensors, or "
        "params_layer_N.safetensors (docs/formats.md)"
    )


def _layers(names: list[str], pattern: re.Pattern[str], source: str) -> list[int]:
    """All layers from 0 on. Raises CorruptFile where one is missing."""
    found = sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
    if missing := sorted(set(range(max(found, default=-1) + 1)) - set(found)):
        raise CorruptFile(
            f"{source} has files of layers up to {found[-1]} and none of layer {missing[0]}: fetch them all"
        )
    return found


def _encoder(layer: _Layer, info: SAEInfo, device: torch.device, dtype: torch.dtype | None) -> SAE:
    """What reads at a layer, as an SAE that writes nothing."""
    tensors = {name: layer.tensors[name] for name in ("W_enc", "b_enc", "threshold") if name in layer.tensors}
    b_enc = tensors["b_enc"]
    contents = Contents(
        source=f"{info.name}, layer {layer.site.layer}",
        tensors={**tensors, "W_dec": b_enc.new_zeros(len(b_enc), 0), "b_dec": b_enc.new_zeros(0)},
        gate="jumprelu" if "threshold" in tensors else "relu",
        site=layer.site,
        site_out=layer.site_out,
        info=replace(info, declared_l0=None),  # which is not said to be a layer's
        writes=False,
    )
    return build(contents, dtype=dtype, devices=[device])


def _put(layer: _Layer, name: str, source: str, device: torch.device) -> Tensor:
    tensor = layer.tensors[name].float()
    if not tensor.isfinite().all():
        raise NotFinite(f"{source}: {name} of layer {layer.site.layer} holds NaN or Inf: the file is damaged")
    return tensor.to(device)


def _stored(find: Find, file: str, source: str) -> Mapping[str, Tensor]:
    path = find(file)
    if path is None:
        raise CorruptFile(f"{source} has no {file}: fetch the whole folder")
    return read_safetensors(path)


def _require_positive(tensors: Mapping[str, Tensor], source: str) -> None:
    if "threshold" in tensors and bool((tensors["threshold"] < 0).any()):
        raise FileError(f"{source} has thresholds below 0, beneath which its features would be negative: not read")


# --- circuit-tracer ---------------------------------------------------------------------------------------------------


def _of_circuit_tracer(find: Find, source: str) -> circuit_tracer.Config:
    path = find(circuit_tracer.CONFIG)
    config = circuit_tracer.Config() if path is None else read_yaml(path, circuit_tracer.Config)
    if path is not None and config.model_kind != "cross_layer_transcoder":
        raise FileError(
            f"{source} says that it is a {config.model_kind}, and has the files of a cross_layer_transcoder"
        )
    return config


def _circuit_tracer(source: str, layer: int, count: int, find: Find, config: circuit_tracer.Config) -> _Layer:
    table: Table = {
        "W_enc": (f"W_enc_{layer}", "F D"),
        "b_enc": (f"b_enc_{layer}", "F"),
        "b_dec": (f"b_dec_{layer}", "O"),
        "threshold": (f"threshold_{layer}", "F"),
    }
    stored = _stored(find, f"W_enc_{layer}.safetensors", source)
    tensors = taken(stored, table, source=f"{source}, layer {layer}", optional=("threshold",))
    _require_positive(tensors, source)
    site, site_out = config.sites(layer, source)
    name = f"W_dec_{layer}"

    def opened() -> Tensor:
        found = _stored(find, f"{name}.safetensors", source)
        if list(found) != [name]:
            raise CorruptFile(f"{source}: {name}.safetensors holds other tensors than {name}")
        return _shaped(found[name], tensors, count - layer, f"{source}: {name}")

    return _Layer(tensors, Written(f"{source}: {name}", opened), site, site_out)


def _shaped(tensor: Tensor, tensors: Mapping[str, Tensor], layers: int, name: str) -> Tensor:
    expected = (tensors["b_enc"].numel(), layers, tensors["b_dec"].numel())
    if tuple(tensor.shape) != expected:
        raise CorruptFile(f"{name} has the shape {tuple(tensor.shape)}, expected {expected}: features, layers, width")
    return tensor


# --- Gemma Scope 2 ----------------------------------------------------------------------------------------------------


def _of_gemma_scope(find: Find, source: str) -> Config:
    path = find(_JSON)
    config = Config() if path is None else read_json(path, Config, remedy="fetch it again")
    kind = (config.type or "").lower()
    if kind == "crosscoder" or (not kind and "crosscoder" in PurePosixPath(source).parts):
        raise FileError(f"{source} is a crosscoder, whose features read several layers at once: not read")
    if config.architecture.lower().replace("_", "") != "jumprelu":
        raise FileError(f"{source} has the architecture {config.architecture!r}: Gemma Scope 2's jump_relu is read")
    return config


_GEMMA: Table = {
    "W_enc": ("w_enc", "D F"),
    "b_enc": ("b_enc", "F"),
    "b_dec": ("b_dec", "O"),
    "threshold": ("threshold", "F"),
    "W_skip": ("affine_skip_connection", "D O"),
}


def _gemma_scope(source: str, layer: int, count: int, find: Find) -> _Layer:
    stored = _stored(find, f"params_layer_{layer}.safetensors", source)
    name = f"{source}: w_dec of layer {layer}"
    if "w_dec" not in stored:
        raise CorruptFile(f"{source} has no w_dec of layer {layer}")
    tensors = taken(stored, _GEMMA, source=f"{source}, layer {layer}", optional=("W_skip",), ignored=("w_dec",))
    _require_positive(tensors, source)
    # Of all layers in the file those before this one are never used.
    written = _shaped(floats(stored["w_dec"], "w_dec", source), tensors, count, name)[:, layer:]
    return _Layer(tensors, Written(name, lambda: written), Site(layer, "transcoder"), Site(layer, "mlp"))
