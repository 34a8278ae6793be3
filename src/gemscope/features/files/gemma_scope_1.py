"""Gemma Scope (Gemma 2): one `params.npz` an SAE, and nothing else in its folder that matters. Where an SAE reads is
written in its repository's name alone.
"""

from __future__ import annotations

from dataclasses import replace

from gemscope.features.files.contents import Contents, info_of, renamed
from gemscope.features.files.format import Format, Found
from gemscope.features.files.npz import read_npz

_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}  # how some of the transcoders write them

_CONTEXT = 1024
"""Tokens per row of its training text, the first of them BOS (Lieberum et al. 2024, section 3)."""


def read(found: Found) -> Contents:
    """A params.npz. What the names said of it tells the site; without them it is open, unless the user gave it."""
    entry = found.entry
    read_at, write_at = (None, None) if entry is None else (entry.site, entry.site_out)
    if found.site is not None:
        read_at, write_at = found.site, None if write_at == read_at else write_at
    return Contents(
        source=found.source,
        tensors=renamed(read_npz(found.path, found.cache, progress=found.progress), _NAMES),
        site=read_at,
        site_out=write_at,
        info=replace(info_of(entry, found.source), prepend_bos=True, context_size=_CONTEXT),
    )


FORMAT = Format(
    name="Gemma Scope",
    called="params.npz",
    weights=r"params\.npz",
    is_its=lambda found: found.file.suffix == ".npz",
    read=read,
)
