"""Apollo's end-to-end SAEs (e2e_sae): a pickle with the SAEs of all hooks of a run, and `final_config.yaml` beside it.
They were trained on models that TransformerLens had rewritten, as it does unless told not to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gemscope.activations.site import Site
from gemscope.checked import read_yaml
from gemscope.errors import FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import times
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.files.taken import Table, taken
from gemscope.features.files.transformer_lens import Processing

CONFIG = "final_config.yaml"
_KEY = re.compile(r"saes\.([A-Za-z0-9_-]+)\..+")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run's configuration says of the model."""

    tlens_model_name: str | None = None


def _hooks(stored: Mapping[str, object]) -> list[str]:
    """By its modules' names, where dots stand as dashes."""
    return sorted({match[1] for name in stored if (match := _KEY.fullmatch(name))})


def read(found: Found) -> Contents:
    """The SAE of one hook: the only one, or that of the site asked for. Raises FileError where there are several and
    none was asked for, CorruptFile.
    """
    source = found.source
    beside = found.folder(CONFIG, needed=False)
    name = found.named(None if beside is None else read_yaml(beside, Config).tlens_model_name)
    hook, site = _chosen(found, name)
    table: Table = {
        "W_enc": (f"saes.{hook}.encoder.0.weight", "F D"),
        "b_enc": (f"saes.{hook}.encoder.0.bias", "F"),
        "W_dec": (f"saes.{hook}.decoder.weight", "O F"),
        "b_dec": (f"saes.{hook}.decoder.bias", "O"),
    }
    others = [key for key in found.stored if not key.startswith(f"saes.{hook}.")]
    tensors = taken(found.stored, table, source=source, ignored=others)
    norm = tensors["W_dec"].double().norm(dim=1, keepdim=True)
    tensors["W_dec"] = times(tensors["W_dec"], torch.where(norm > 0, 1 / norm, 0.0))  # used with rows of norm 1
    done = Processing(centred=True, norm_folded=True, values_folded=True, rotated=False, undone_before=False)
    tensors, centred = done.undone(tensors, (site, None), name=name, model=found.model, source=source)
    return Contents(source=source, tensors=tensors, gate="relu", centred=centred, site=site, info=found.info(name))


def _chosen(found: Found, model: str | None) -> tuple[str, Site]:
    hooks = {hook.replace("-", "."): hook for hook in _hooks(found.stored)}
    if found.site is None and len(hooks) == 1:
        ((hook, key),) = hooks.items()
        return key, site_of_hook(hook, model, found.source)
    for hook, key in hooks.items():
        try:
            site = site_of_hook(hook, model, found.source)
        except FileError:
            continue
        if site == found.site:
            return key, site
    asked = "is not of one SAE alone" if found.site is None else f"has none of {found.site}"
    names = ", ".join(sorted(hooks))
    raise FileError(f"{found.source} {asked}: say of which, as in site='4.res'; it has those of {names}")


FORMAT = Format(
    name="e2e_sae",
    weights=r"samples_\d+\.pt",
    called="",
    is_its=lambda found: bool(_hooks(found.stored)),
    read=read,
)
