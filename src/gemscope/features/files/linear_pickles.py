"""SAEs published as one pickle of two linear layers, whose file name says the model and the layer: Goodfire's of Llama
3, and qresearch's of a DeepSeek-R1 distilled into Llama. ReLU, and nothing is taken from the input.
"""

from __future__ import annotations

import re
from functools import partial

from gemscope.activations.site import Site
from gemscope.features.files.contents import Contents
from gemscope.features.files.format import Format, Found
from gemscope.features.files.taken import Table, taken

_NAME = r"([A-Za-z0-9.-]+)-SAE-l(\d{1,9})\.pth?"
_GOODFIRE: Table = {
    "W_enc": ("encoder_linear.weight", "F D"),
    "b_enc": ("encoder_linear.bias", "F"),
    "W_dec": ("decoder_linear.weight", "O F"),
    "b_dec": ("decoder_linear.bias", "O"),
}
_DEEPSEEK: Table = {name: (theirs.replace("_linear", ""), axes) for name, (theirs, axes) in _GOODFIRE.items()}


def read(found: Found, table: Table, owner: str) -> Contents:
    """Such a pickle. Raises FileError where neither its name nor the user says the layer, CorruptFile."""
    named = re.fullmatch(_NAME, found.file.name)
    return Contents(
        source=found.source,
        tensors=taken(found.stored, table, source=found.source),
        gate="relu",
        site=found.site or (found.required_site() if named is None else Site(int(named[2]), "res")),
        info=found.info(None if named is None else f"{owner}/{named[1]}"),
    )


GOODFIRE = Format(
    name="Goodfire",
    weights=_NAME,
    called="MODEL-SAE-lN.pth",
    is_its=lambda found: found.has("encoder_linear.weight", "decoder_linear.weight"),
    read=partial(read, table=_GOODFIRE, owner="meta-llama"),
)
DEEPSEEK_R1 = Format(
    name="DeepSeek-R1",
    weights=_NAME,
    called="",
    # Others have these names in files of other names.
    is_its=lambda found: found.has("encoder.weight", "decoder.bias") and bool(re.fullmatch(_NAME, found.file.name)),
    read=partial(read, table=_DEEPSEEK, owner="deepseek-ai"),
)
