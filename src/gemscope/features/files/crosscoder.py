"""Crosscoders on disk: a folder like an SAE's (`cfg.json`, `sae_weights.safetensors`), of an architecture that SAELens
does not have. The weights are those of the SAE over all sites side by side; the configuration says which site is where.

    {"architecture": "crosscoder", "format": 1, "d_sae": 6144, "gate": "jumprelu",
     "sites": [{"site": "3.res", "width": 576, "length": 93.1}, ...],
     "metadata": {"model_name": ..., "l0": ..., ...}}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from gemscope.activations.site import Site
from gemscope.checked import existing
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFinite, SAENotFound, SiteNotFound
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.files.contents import Contents, build
from gemscope.features.files.json_file import read_json
from gemscope.features.files.saelens import CONFIG, CROSSCODER, WEIGHTS, write_pair
from gemscope.features.files.tensors import read_safetensors, stream_of
from gemscope.features.sae import Gate, SAEInfo

_FORMAT = 1
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
    streams = {name: stream_of(weight) for name, weight in sae.state_dict().items()}
    return write_pair(Path(folder).expanduser(), config, streams)


def load_crosscoder(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Crosscoder:
    """A crosscoder from a folder here. `dtype=None` keeps what the file has.

    Raises SAENotFound where there is none, FileError for a folder of another kind, CorruptFile, NotFinite.
    """
    path = existing(folder)
    if path is None:
        raise SAENotFound(f"no crosscoder in {os.fspath(folder)}: there is nothing of that name")
    if missing := [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]:
        raise SAENotFound(f"no crosscoder in {path}: it has no {' and no '.join(missing)}")
    config = read_json(path / CONFIG)
    if config.get("architecture") != CROSSCODER:
        raise FileError(
            f"{path} is of the architecture {config.get('architecture')!r}, no crosscoder: load it with load_sae"
        )
    if config.get("format") != _FORMAT:
        raise FileError(f"{path} is of format {config.get('format')!r}, this version reads {_FORMAT}")
    sites, widths, lengths = _placed(config, path)
    if config.get("gate") not in get_args(Gate):
        raise CorruptFile(f"{path}: {CONFIG} has gate={config.get('gate')!r}, expected {', '.join(get_args(Gate))}")
    metadata = config.get("metadata")
    contents = Contents(
        source=str(path),
        tensors=read_safetensors(path / WEIGHTS),
        gate=config["gate"],
        k=config.get("k"),
        site=None,
        info=_info(metadata if isinstance(metadata, dict) else {}, str(path)),
    )
    try:
        return Crosscoder(build(contents, dtype=dtype, device=device), sites, widths, lengths)
    except NotFinite:
        raise
    except (InputError, Mismatch) as error:
        raise CorruptFile(f"{path}: {error}") from error


def _placed(config: Mapping[str, Any], path: Path) -> tuple[tuple[Site, ...], tuple[int, ...], tuple[float, ...]]:
    try:
        rows = config["sites"]
        return (
            tuple(Site.parse(row["site"]) for row in rows),
            tuple(int(row["width"]) for row in rows),
            tuple(float(row["length"]) for row in rows),
        )
    except (KeyError, TypeError, ValueError, AttributeError, SiteNotFound) as error:
        raise CorruptFile(
            f"{path}: {CONFIG} does not say which sites it reads ({error}): expected site, width and length of each"
        ) from error


def _info(metadata: Mapping[str, Any], name: str) -> SAEInfo:
    facts = {field: metadata.get(stored) for field, stored in _FACTS.items()}
    others = {key: value for key, value in metadata.items() if key not in _FACTS.values()}
    return SAEInfo(name=name, metadata=others, **facts)
