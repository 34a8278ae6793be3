"""SAEs of SAELens's that are in memory, read as their folders would be. SAELens is not imported: what is its own is
told by where its class comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.checked import shown
from gemscope.errors import InputError
from gemscope.features.files.contents import build
from gemscope.features.files.format import Found
from gemscope.features.files.saelens import described
from gemscope.features.files.saelens_config import WEIGHTS
from gemscope.features.sae import SAE


def from_saelens(
    sae: Any,
    *,
    site: Site | str | None = None,
    model: LanguageModel | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> SAE:
    """An SAE of SAELens's that is in memory, with copies of its weights: the same that its folder gives on loading.
    One in training is taken as what it would be saved as. `site` stands in for its hook name, `model` is the one that
    it is for, where that is needed; it stays on its device unless another is given.

    Raises InputError for what is none of SAELens's own, and what `load_sae` raises for its folder: FileError for an
    architecture, a normalisation or a hook that is not read here.
    """
    kind = type(sae)
    if kind.__module__.partition(".")[0] != "sae_lens" or not hasattr(sae, "cfg"):
        raise InputError(f"a {kind.__name__} of {kind.__module__} given: expected an SAE of SAELens's own classes")
    state = sae.state_dict()
    sae.process_state_dict_for_saving(state)
    found = Found(
        source=f"the {kind.__name__} at {shown(sae.cfg.metadata.hook_name, 60)}",
        place=PurePosixPath(),
        folder=_nothing,
        weights=WEIGHTS,
        site=None if site is None else Site.parse(site),
        model=model,
        cache=Path(),
    )
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    # Its configuration is of version 6, whatever version its folder was of.
    contents = described(found, _plain(sae.cfg.to_dict()), weights)
    return build(contents, dtype=dtype, devices=[torch.device(sae.W_enc.device if device is None else device)])


def _nothing(name: str, *, needed: bool = True) -> None:
    """The folder of an SAE that has none."""


def _plain(value: Any) -> Any:
    """A configuration as its JSON would have it; what JSON has no word for in Python's words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
