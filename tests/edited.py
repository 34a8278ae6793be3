"""What tests of edits share: models and SAEs made once, edits of each kind, and what each adds by its formula."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

import gemscope as gs
from by_hand import (
    MAIN,
    features64,
    model_of,
    random_sae,
)
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.features.sae import SAE
from gemscope.testing import D_MODEL, identity_sae

every_family = pytest.mark.parametrize("family", MAIN)


few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


some = settings(few, max_examples=15)


IDS = st.lists(st.integers(10, 300), min_size=2, max_size=12)


FEATURES = st.integers(0, 47)


NUMBERS = st.floats(-8, 8, width=32)


SETTERS = ("Clamp", "Scale", "Ablate", "AtLeast", "Project", "Cap")


@cache
def sae_of(family: str, site: str, gate: str = "jumprelu") -> SAE:
    return random_sae(model_of(family), site, gate=gate, **({"k": 6} if gate == "topk" else {}))


perfect = cache(identity_sae)


def arriving(model: LanguageModel, text: object, site: str) -> tuple[Tensor, Tensor]:
    """What flows through a site, and which of its tokens count."""
    acts = model.capture(text, [site])[site]
    return acts.values, acts.counted


def after(model: LanguageModel, text: object, site: str, *edits: Edit, **options: object) -> Tensor:
    with model.edited(*edits, **options):
        return model.capture(text, [site])[site].values


def made(kind: str, sae: SAE, feature: int, by: float, **options: object) -> Edit:
    """An edit of each kind that acts on one feature."""
    if kind == "Ablate":
        return gs.Ablate(sae, feature, **options)
    if kind == "Cap":
        return gs.Cap(sae, feature, low=-abs(by) / 4, high=abs(by) / 8, **options)
    return getattr(gs, kind)(sae, feature, by, **options)


def moved64(kind: str, sae: SAE, feature: int, by: float, x: Tensor) -> Tensor:
    """What such an edit adds, by its formula in docs/edits.md."""
    x, d = x.double(), sae.W_dec[feature].double()
    f = features64(sae, x)[..., feature, None]
    along = (x @ d / (d @ d))[..., None]  # x's coordinate along d, in multiples of d
    return {
        "Steer": lambda: torch.full_like(f, by) * d,
        "Clamp": lambda: (by - f) * d,
        "Scale": lambda: (by - 1) * f * d,
        "Ablate": lambda: -f * d,
        "AtLeast": lambda: (by - f).clamp(min=0) * d,
        "Project": lambda: (by - 1) * (x @ (d / d.norm()))[..., None] * (d / d.norm()),
        "Cap": lambda: (along.clamp(-abs(by) / 4, abs(by) / 8) - along) * d,
    }[kind]()


def assert_moved(before: Tensor, now: Tensor, by: Tensor, where: Tensor) -> None:
    """To float32's rounding where it acts; bit by bit elsewhere."""
    assert torch.equal(now[~where], before[~where])
    torch.testing.assert_close(now[where].double(), (before.double() + by)[where], rtol=2e-6, atol=2e-5)


class Boom(Exception):
    pass


def touched(model: LanguageModel, text: object, site: str, edit: Edit, **options: object) -> list[list[bool]]:
    before = model.capture(text, [site])[site].values
    return (after(model, text, site, edit, **options) != before).any(-1).tolist()


def nudge(site: str = "1.res", **options: object) -> Edit:
    return gs.Steer.along(site, torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5)), 3.0, **options)


def _sae() -> SAE:
    return sae_of("llama", "1.res")


def _transcoder() -> SAE:
    return random_sae(model_of("llama"), "1.transcoder", site_out="1.mlp")
