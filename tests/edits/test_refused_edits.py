"""What cannot be edited is one clear line; what can is another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import gemscope as gs
from by_hand import (
    TEXT,
    hooks,
    model_of,
    random_sae,
)
from edited import _sae, _transcoder, nudge
from gemscope.errors import GemscopeError, InputError, Mismatch, SiteNotFound
from gemscope.features.sae import SAE
from gemscope.testing import D_MODEL, identity_sae, tiny_model


def _narrow() -> SAE:
    return SAE(D_MODEL + 1, 8, site="1.res")


def _dead() -> SAE:
    sae = random_sae(model_of("llama"))
    sae.W_dec[4] = 0
    return sae


_NAN, _INF = float("nan"), float("inf")


REFUSED: dict[str, tuple[Callable[[], object], type[GemscopeError], str]] = {
    "an unknown feature": (lambda: [gs.Clamp(_sae(), 48, 1.0)], InputError, "no feature 48: this SAE has features 0 to 47"),
    "a negative feature": (lambda: [gs.Steer(_sae(), -1, 1.0)], InputError, "no feature -1"),
    "an unknown feature to project": (lambda: [gs.Project(_sae(), 99)], InputError, "no feature 99"),
    "a strength of NaN": (lambda: [gs.Steer(_sae(), 3, _NAN)], InputError, "nan"),
    "a strength of inf": (lambda: [gs.Clamp(_sae(), 3, _INF)], InputError, "inf"),
    "a factor of NaN": (lambda: [gs.Scale(_sae(), 3, _NAN)], InputError, "nan"),
    "a floor of inf": (lambda: [gs.AtLeast(_sae(), 3, _INF)], InputError, "inf"),
    "a share of NaN": (lambda: [gs.Project(_sae(), 3, keep=_NAN)], InputError, "nan"),
    "a bound of NaN": (lambda: [gs.Cap(_sae(), 3, low=_NAN)], InputError, "nan"),
    "bounds that cross": (lambda: [gs.Cap(_sae(), 3, low=2.0, high=1.0)], InputError, "low"),
    "a vector with NaN": (lambda: [gs.Steer.along("1.res", torch.full((D_MODEL,), _NAN))], InputError, ""),
    "an SAE of another width": (lambda: [gs.Clamp(_narrow(), 3, 1.0)], Mismatch, "32"),
    "a splice of another width": (lambda: [gs.Splice(_narrow(), error=False)], Mismatch, "32"),
    "a vector of another width": (lambda: [gs.Steer.along("1.res", torch.ones(7))], Mismatch, "7"),
    "two splices at one site": (
        lambda: [gs.Splice(_sae(), error=True), gs.Splice(_dead(), error=False)], InputError, "1.res"),
    "two clamps of one feature": (
        lambda: [gs.Clamp(_sae(), 3, 1.0), gs.Clamp(_sae(), 3, 2.0)], InputError, "contradict"),
    "a clamp and an ablation of one feature": (
        lambda: [gs.Clamp(_sae(), 3, 1.0), gs.Ablate(_sae(), 3)], InputError, "contradict"),
    "a transcoder in Splice": (lambda: [gs.Splice(_transcoder(), error=False)], InputError, "Replace"),
    "an SAE in Replace": (lambda: [gs.Replace(_sae())], InputError, "Splice"),
    "a zero decoder row to project": (lambda: [gs.Project(_dead(), 4)], InputError, "zero"),
    "a zero decoder row to cap": (lambda: [gs.Cap(_dead(), 4, high=1.0)], InputError, "zero"),
    "a zero vector to project": (lambda: [gs.Project.along("1.res", torch.zeros(D_MODEL))], InputError, "zero"),
    "a site on the side": (
        lambda: [gs.Steer.along("1.transcoder_nogain", torch.ones(D_MODEL))], InputError, "cannot be edited"),
    "a layer that is not there": (lambda: [gs.Steer.along("7.res", torch.ones(D_MODEL))], SiteNotFound, "no layer 7"),
    "an SAE without a site": (lambda: [gs.Clamp(SAE(D_MODEL, 8), 3, 1.0)], InputError, "site"),
    "a mask of the wrong shape": (
        lambda: [gs.Clamp(_sae(), 3, 1.0, at=torch.ones(2, 3, dtype=torch.bool))], InputError, "shape (2, 3)"),
    "a mask that is none": (lambda: [gs.Clamp(_sae(), 3, 1.0, at=torch.ones(1, 5))], InputError, "at"),
    "a word that names no positions": (lambda: [gs.Clamp(_sae(), 3, 1.0, at="everywhere")], InputError, "everywhere"),
    "no edit at all": (lambda: [3.0], InputError, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_edited_gets_one_clear_line(unchecked: None, case: str) -> None:
    make, kind, says = REFUSED[case]
    model = model_of("llama")
    before = model.logits(TEXT)
    with pytest.raises(GemscopeError) as raised:
        with model.edited(*make()):
            model.logits(TEXT)
    assert isinstance(raised.value, kind), repr(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


@pytest.mark.parametrize("rows", [[5], [-1], [0, 2]])
def test_rows_that_the_batch_does_not_have_are_refused(unchecked: None, rows: list[int]) -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match="row") as raised:
        with model.edited(nudge(), rows=rows):
            model.logits(["the thing", "it"])
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0


def test_embeddings_in_the_place_of_ids_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match="input_ids"), model.edited(nudge()):
        model.hf(inputs_embeds=torch.zeros(1, 3, D_MODEL))


def test_every_edit_is_one_readable_line() -> None:
    sae = _sae()
    for edit in (
        gs.Steer(sae, 3, 2.0), gs.Clamp(sae, 3, 2.0), gs.Scale(sae, 3, 2.0), gs.Ablate(sae, 3), gs.AtLeast(sae, 3, 2.0),
        gs.Project(sae, 3), gs.Cap(sae, 3, high=1.0), gs.Splice(sae, error=True), gs.Splice(sae, error=False),
        gs.Replace(_transcoder()), nudge(), gs.Clamp(sae, 3, 2.0, at=(1, 2)), gs.Clamp(sae, 3, 2.0, at="generated"),
    ):  # fmt: skip
        line = str(edit)
        assert "\n" not in line
        assert 5 < len(line) < 160
        assert "1.res" in line or "1.mlp" in line
    assert "3" in str(gs.Clamp(sae, 3, 2.0))
    assert str(gs.Splice(sae, error=True)) != str(gs.Splice(sae, error=False))
    assert str(gs.Clamp(sae, 3, 2.0, at="generated")) != str(gs.Clamp(sae, 3, 2.0))


def test_an_sae_that_was_told_its_site_afterwards_can_be_acted_with() -> None:
    model, sae = tiny_model("llama"), identity_sae(32)
    later = gs.SAE(32, 64, gate="relu")
    later.load_state_dict(sae.state_dict())
    with pytest.raises(InputError, match="does not say where it reads"):
        gs.Clamp(later, 3, 4.0)
    later.site = sae.site
    for make in (lambda one: gs.Clamp(one, 3, 4.0), lambda one: gs.Steer(one, 3, 4.0), lambda one: gs.Ablate(one, 3)):
        with model.edited(make(sae)):
            expected = model.logits("the thing")
        with model.edited(make(later)):
            assert torch.equal(model.logits("the thing"), expected)
    clean = model.logits("the thing")
    with model.edited(gs.Splice(later, error=False)):
        assert torch.equal(model.logits("the thing"), clean)
