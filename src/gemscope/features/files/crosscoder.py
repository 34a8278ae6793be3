"""Crosscoders on disk: a folder like an SAE's (`cfg.json`, `sae_weights.safetensors`), of an architecture that SAELens
does not have. The weights are those of the SAE over all sites side by side; the configuration says which site is where.

    {"architecture": "crosscoder", "format": 1, "d_sae": 6144, "gate": "jumprelu",
     "sites": [{"site": "3.res", "width": 576, "length": 93.1}, ...],
     "metadata": {"model_name": ..., "l0": ..., ...}}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta

from gemscope.activations.site import Site
from gemscope.checked import Positive, declared, existing, quoted
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFinite, SAENotFound, SiteNotFound
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.files.contents import Contents, build
from gemscope.features.files.json_file import read_json
from gemscope.features.files.placed import of_json, of_streams, put
from gemscope.features.files.saelens_config import CONFIG, CROSSCODER, WEIGHTS
from gemscope.features.files.tensors import read_safetensors, stream_of
from gemscope.features.kernels.choice import place_for
from gemscope.features.sae import SAEInfo
from gemscope.features.weights import Gate

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """One of its sites."""

    site: str
    width: Positive
    length: Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What SAEInfo has fields for; other metadata is kept as it is."""

    model_name: str | None = None
    revision: str | None = None
    l0: float | None = None
    neuronpedia_id: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """`cfg.json`, once its architecture and format are those."""

    gate: Gate
    sites: tuple[Place, ...]
    k: Positive | None = None
    metadata: Facts = field(default_factory=Facts)


_FACTS = {
    "model": "model_name",
    "revision": "revision",
    "declared_l0": "l0",
    "neuronpedia_id": "neuronpedia_id",
    "prepend_bos": "prepend_bos",
    "context_size": "context_size",
}
"""Fields of SAEInfo, and what the folder calls them."""


def save_crosscoder(crosscoder: Crosscoder, folder: str | Path) -> Path:
    """Writes a crosscoder as a folder, which `load_crosscoder` reads. Returns the folder.

    Files of the same name are replaced when the new ones are whole. Raises StorageFull, FileError.
    """
    sae, info = crosscoder.sae, crosscoder.info
    placed = zip(crosscoder.sites, crosscoder.widths, crosscoder.lengths, strict=True)
    config = {
        "architecture": CROSSCODER,
        "format": _FORMAT,
        "d_sae": sae.d_sae,
        "gate": sae.gate,
        **({} if sae.k is None else {"k": sae.k}),
        "sites": [{"site": str(site), "width": width, "length": length} for site, width, length in placed],
        "metadata": {**info.metadata, **{stored: getattr(info, name) for name, stored in _FACTS.items()}},
    }
    streams = {name: stream_of(weight) for name, weight in sae.tensors.items()}
    return put(Path(folder).expanduser(), {CONFIG: of_json(config), WEIGHTS: of_streams(streams)})


def load_crosscoder(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str | None = "auto",
    dtype: torch.dtype | None = torch.float32,
) -> Crosscoder:
    """A crosscoder from a folder here. `dtype=None` keeps what the file has; `device` is as in `load_sae`.

    Raises SAENotFound where there is none, FileError for a folder of another kind, CorruptFile, NotFinite.
    """
    where = place_for(device)
    path = existing(folder)
    if path is None:
        raise SAENotFound(f"no crosscoder in {os.fspath(folder)}: there is nothing of that name")
    if missing := [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]:
        raise SAENotFound(f"no crosscoder in {path}: it has no {' and no '.join(missing)}")
    stored = read_json(path / CONFIG)
    if stored.get("architecture") != CROSSCODER:
        raise FileError(
            f"{path} is of the architecture {quoted(stored.get('architecture'))}, no crosscoder: load it with load_sae"
        )
    if stored.get("format") != _FORMAT:
        raise FileError(f"{path} is of format {quoted(stored.get('format'))}, this version reads {_FORMAT}")
    config = declared(stored, Config, where=f"{path}: {CONFIG}")
    contents = Contents(
        source=str(path),
        tensors=read_safetensors(path / WEIGHTS),
        gate=config.gate,
        k=config.k,
        site=None,
        info=_info(config.metadata, stored.get("metadata", {}), str(path)),
    )
    try:
        return Crosscoder(
            build(contents, dtype=dtype, devices=[where]),
            tuple(Site.parse(place.site) for place in config.sites),
            tuple(place.width for place in config.sites),
            tuple(place.length for place in config.sites),
        )
    except NotFinite:
        raise
    except (InputError, Mismatch, SiteNotFound) as error:
        raise CorruptFile(f"{path}: {error}") from error


def _info(facts: Facts, everything: Mapping[str, Any], name: str) -> SAEInfo:
    known = {field: getattr(facts, stored) for field, stored in _FACTS.items()}
    others = {key: value for key, value in everything.items() if key not in _FACTS.values()}
    return SAEInfo(name=name, metadata=others, **known)
