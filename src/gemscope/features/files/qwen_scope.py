"""Qwen Scope: `layerN.sae.pt`, a pickle a layer, in a repository whose name says model, width and k, which the files do
not: Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50.
"""

from __future__ import annotations

import re

from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.format import Format, Found
from gemscope.features.files.taken import Table, taken

_LAYER = r"layer(\d{1,9})\.sae\.pt"
_REPO = r"SAE-Res-(.+)-W(\d{1,6})K-L0_(\d{1,6})"
_TABLE: Table = {
    "W_enc": ("W_enc", "F D"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("W_dec", "O F"),
    "b_dec": ("b_dec", "O"),
}


def read(found: Found) -> Contents:
    """One layer. Raises FileError where no folder on the way is called as its repository, CorruptFile."""
    source, layer, repo = found.source, re.fullmatch(_LAYER, found.file.name), found.hit(_REPO)
    if repo is None:
        raise FileError(
            f"{source} does not say how many features are active (k), as its repository's name does: put it into a "
            "folder called so, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    tensors = taken(found.stored, _TABLE, source=source)
    if tensors["W_enc"].shape[1] != 1024 * int(repo[2]):
        raise CorruptFile(f"{source} has {tensors['W_enc'].shape[1]} features, {repo[0]} says {repo[2]} times 1024")
    return Contents(
        source=source,
        tensors=tensors,
        gate="topk",
        k=int(repo[3]),
        site=found.site or (found.required_site() if layer is None else Site(int(layer[1]), "res")),
        info=found.info(f"Qwen/{repo[1]}", declared_l0=float(repo[3])),
    )


FORMAT = Format(
    name="Qwen Scope",
    weights=_LAYER,
    called="layerN.sae.pt",
    is_its=lambda found: found.hit(_REPO) is not None,
    read=read,
)
