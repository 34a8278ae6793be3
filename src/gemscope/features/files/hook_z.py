"""The SAEs of attention heads by Kissane and Krzyzanowski, and others of the same code: NAME.pt, a pickle, and
NAME_cfg.json. They were trained on models that TransformerLens had rewritten, as it does unless told not to.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemscope.checked import Positive
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_input_bias
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.files.taken import Table, taken
from gemscope.features.files.transformer_lens import Processing

_TABLE: Table = {
    "W_enc": ("W_enc", "D F"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("W_dec", "F O"),
    "b_dec": ("b_dec", "O"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """NAME_cfg.json."""

    act_name: str
    act_size: Positive
    dict_size: Positive
    model_name: str | None = None
    concat_heads: bool = True
    seq_len: Positive | None = None


def _config(found: Found) -> str:
    return f"{found.file.stem}_cfg.json"


def read(found: Found) -> Contents:
    """One of them, for the model as it is: without the model's value biases, which `model` tells, it reads nothing
    right. Raises FileError where the model has to be given, CorruptFile.
    """
    source = found.source
    config = found.declared(_config(found), Config)
    if not config.concat_heads:
        raise FileError(f"{source} reads single attention heads: SAEs over all heads are read")
    tensors = taken(found.stored, _TABLE, source=source)
    if (config.act_size, config.dict_size) != tuple(tensors["W_enc"].shape):
        there = " to ".join(map(str, tensors["W_enc"].shape))
        raise CorruptFile(
            f"{source}: {_config(found)} says {config.act_size} to {config.dict_size}, the weights have {there}"
        )
    fold_input_bias(tensors)
    name = found.named(config.model_name)
    hook = config.act_name.replace(".hook_z", ".attn.hook_z") if ".attn." not in config.act_name else config.act_name
    site = found.site or site_of_hook(hook, name, source)
    # HookedTransformer.from_pretrained(...) in its train.py
    done = Processing(centred=True, norm_folded=True, values_folded=True, rotated=False, undone_before=False)
    tensors, centred = done.undone(tensors, (site, None), name=name, model=found.model, source=source)
    return Contents(
        source=source,
        tensors=tensors,
        gate="relu",
        centred=centred,
        site=site,
        info=found.info(config.model_name, prepend_bos=True, context_size=config.seq_len),
    )


FORMAT = Format(
    name="hook_z",
    weights=r".+_z_.+_v\d+\.pt",
    called="",
    is_its=lambda found: found.has("W_enc", "W_dec") and found.folder(_config(found), needed=False) is not None,
    read=read,
)
