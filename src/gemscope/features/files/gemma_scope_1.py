"""Gemma Scope (Gemma 2): one `params.npz` an SAE, and nothing else in its folder that matters. Where an SAE reads is
written in its repository's name alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gemscope.activations.site import Site
from gemscope.features.entry import Entry
from gemscope.features.files.contents import Contents, info_of, renamed
from gemscope.features.files.npz import read_npz
from gemscope.progress import Progress, silent

WEIGHTS = "params.npz"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}  # how some of the transcoders write them

_CONTEXT = 1024
"""Tokens per row of its training text, the first of them BOS (Lieberum et al. 2024, section 3)."""


def read(
    path: Path, *, entry: Entry | None, source: str, cache: Path, site: Site | None = None, progress: Progress = silent
) -> Contents:
    """A params.npz. `entry` says what the names said of it; None leaves the site open, unless `site` gives it."""
    read_at, write_at = (None, None) if entry is None else (entry.site, entry.site_out)
    if site is not None:
        read_at, write_at = site, None if write_at == read_at else write_at
    return Contents(
        source=source,
        tensors=renamed(read_npz(path, cache, progress=progress), _NAMES),
        site=read_at,
        site_out=write_at,
        info=replace(info_of(entry, source), prepend_bos=True, context_size=_CONTEXT),
    )
