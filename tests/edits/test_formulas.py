"""What each edit adds, by the formula that its docstring gives, in float64; strengths in all their units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemscope.edits import ways
from gemscope.edits.clamp import Ablate, AtLeast, Clamp, Scale
from gemscope.edits.controls import noise, random_feature
from gemscope.edits.splice import Constant, Replace, Splice
from gemscope.edits.steer import Cap, Project, Steer
from gemscope.edits.strength import Amount, Strength
from gemscope.edits.units import Units
from gemscope.errors import InputError
from gemscope.features.sae import SAE

D, F = 7, 20
GATES: list[dict[str, Any]] = [{"gate": "jumprelu"}, {"gate": "relu"}, {"gate": "topk", "k": 4}]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_sae(**options: Any) -> SAE:
    sae = SAE(D, F, **{"site": "1.res", **options})
    for seed, weight in enumerate(sae.parameters()):
        weight.copy_(normal(seed, *weight.shape))
    return sae


def float64(x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return x.detach().numpy().astype(np.float64)


def activations(sae: SAE, x: Tensor, feature: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """By the definition of each gate."""
    z = float64(x) @ float64(sae.W_enc) + float64(sae.b_enc)
    if sae.k is not None:
        kept = z >= np.sort(z, axis=1)[:, [-sae.k]]
    else:
        kept = z > (0 if sae.threshold is None else float64(sae.threshold))
    return (np.maximum(z, 0) * kept)[:, feature]


def added(edit: Any, x: Tensor, read: Tensor | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    return float64(edit.change(x, x if read is None else read))


def close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_setting_an_activation_adds_the_difference_times_the_direction(gate: dict[str, Any]) -> None:
    sae, x = random_sae(**gate), normal(50, 60, D)
    for feature in (0, 7, F - 1):
        f, d = activations(sae, x, feature), float64(sae.W_dec)[feature]
        assert 0 < (f > 0).sum() < 60
        close(added(Clamp(sae, feature, 1.5), x), np.outer(1.5 - f, d))
        close(added(Clamp(sae, feature, -2.0), x), np.outer(-2.0 - f, d))
        close(added(AtLeast(sae, feature, 1.0), x), np.outer(np.maximum(1.0 - f, 0), d))
        close(added(Scale(sae, feature, 2.5), x), np.outer(1.5 * f, d))
        close(added(Ablate(sae, feature), x), np.outer(-f, d))


def test_along_a_direction_what_lies_there_is_added_to_scaled_or_kept_within_bounds() -> None:
    sae, x = random_sae(), normal(51, 60, D)
    d = float64(sae.W_dec)[3]
    share = float64(x) @ d / (d @ d)
    close(added(Steer(sae, 3, -1.5), x), np.broadcast_to(-1.5 * d, (60, D)))
    for keep in (0.0, 0.5, 1.0, -2.0):
        close(added(Project(sae, 3, keep), x), np.outer((keep - 1) * share, d))
    for low, high in ((None, 0.1), (-0.1, None), (-0.2, 0.3), (0.1, 0.1), (0.0, None), (None, 0.0)):
        wanted = np.clip(share, -np.inf if low is None else low, np.inf if high is None else high)
        close(added(Cap(sae, 3, low=low, high=high), x), np.outer(wanted - share, d))
        mine = Cap.along("1.res", sae.W_dec[3], low=low, high=high)
        close(added(mine, x), np.outer(wanted - share, d))
    assert Cap(sae, 3, low=-1.0, high=2.0).strength == Strength(2.0)
    assert Cap(sae, 3, low=-1.0).strength == Strength(-1.0)
    with pytest.raises(InputError, match=r"low=0.2 above high=0.1"):
        Cap(sae, 3, low=0.2, high=0.1)
    with pytest.raises(InputError, match="at least one bound"):
        Cap(sae, 3)


def test_what_takes_an_activations_place_is_what_it_says() -> None:
    sae, x = random_sae(), normal(52, 9, D)
    out = float64(sae.encode_dense(x)) @ float64(sae.W_dec) + float64(sae.b_dec)
    close(added(Splice(sae, error=False), x), out - float64(x))
    assert not added(Splice(sae, error=True), x).any()
    transcoder, read = random_sae(site="1.transcoder", site_out="1.mlp"), normal(53, 9, D)
    out = float64(transcoder.encode_dense(read)) @ float64(transcoder.W_dec) + float64(transcoder.b_dec)
    close(added(Replace(transcoder), x, read), out - float64(x))
    vector = normal(54, D)
    close(added(Constant("1.res", vector), x), float64(vector) - float64(x))


def test_every_way_by_its_word_is_the_edit_that_it_stands_for() -> None:
    sae, x = random_sae(), normal(55, 30, D)
    made = {
        "add": Steer(sae, 5, 0.7),
        "clamp": Clamp(sae, 5, 0.7),
        "at-least": AtLeast(sae, 5, 0.7),
        "scale": Scale(sae, 5, 0.7),
        "ablate": Ablate(sae, 5),
        "project": Project(sae, 5, 0.7),
        "cap": Cap(sae, 5, high=0.7),
    }
    assert list(made) == list(ways.WAYS)
    for how, edit in made.items():
        close(added(ways.edit(how, sae, 5, 0.7), x), added(edit, x))
        assert str(ways.edit(how, sae, 5, 0.7)) == str(edit)


def test_an_edit_says_what_it_does_where_and_on_which_tokens() -> None:
    sae = random_sae()
    assert str(Clamp(sae, 5, 2.0)) == "clamp feature 5 to 2 raw at 1.res"
    assert str(Ablate(sae, 5, at="prompt")) == "ablate feature 5 at 1.res, prompt"
    assert str(Scale(sae, 5, 0.5, every_token=True)) == "scale feature 5 by 0.5 at 1.res, every token"
    assert "its error term kept" in str(Splice(sae, error=True))
    assert "without its error term" in str(Splice(sae, error=False))
    for how, way in ways.WAYS.items():
        if way.takes == "a strength":
            ways.require_added(how)
        else:
            with pytest.raises(InputError, match=f"noise as a control for {how}"):
                ways.require_added(how)


def test_a_strength_is_told_in_all_units_that_are_known() -> None:
    sae = random_sae()
    maxima = torch.arange(F).float()
    units = Units(sae, maxima=maxima, median_norm=40.0, source="a text", tokens=10)
    for feature in (1, 6):
        length = float(np.linalg.norm(float64(sae.W_dec)[feature]))
        for written, raw in (("3", 3.0), ("-2 raw", -2.0), ("2max", 2.0 * feature), ("0.5norm", 0.5 * 40 / length)):
            strength = units.of(Amount.read(written), feature)
            assert strength.raw == pytest.approx(raw)
            assert strength.of_max == pytest.approx(raw / feature)
            assert strength.of_norm == pytest.approx(raw * length / 40)
    assert units.max(6) == units.raw(6, 6.0)
    assert units.raw(0, 3.0).of_max is None  # it never fired
    with pytest.raises(InputError, match="fires on none of the 10 tokens"):
        units.max(0, 1.0)
    unknown = Units(sae, maxima={4: 2.0}, median_norm=None, source="a text", tokens=10)
    assert unknown.raw(4, 3.0) == Strength(3.0, 1.5, None)
    with pytest.raises(InputError, match="median norm is not known"):
        unknown.norm(4, 1.0)
    sae.W_dec[4] = 0
    with pytest.raises(InputError, match="feature 4 writes nothing"):
        units.norm(4, 1.0)
    assert str(Strength(2.0, 0.5, 0.25)) == "2 raw = 0.5 × max = 0.25 × median norm"
    assert str(Strength(2.0)) == "2 raw"
    for wrong in (math.nan, math.inf):
        with pytest.raises(InputError, match="expected a finite number"):
            Strength(wrong)


def test_an_amount_is_read_as_it_is_written_and_multiplied() -> None:
    for written, value, unit in ((" 2max ", 2.0, "max"), ("1e-3 norm", 1e-3, "norm"), ("-30", -30.0, "raw")):
        amount = Amount.read(written)
        assert (amount.value, amount.unit) == (value, unit)
        assert Amount.read(str(amount)) == amount
        assert amount * 1.5 == Amount(value * 1.5, amount.unit)
    for wrong in ("", "max", "2 mins", "nan", "infnorm", "2max2"):
        with pytest.raises(InputError, match="is no strength"):
            Amount.read(wrong)


def test_a_control_is_alike_in_its_maximum_and_points_elsewhere() -> None:
    sae = random_sae()
    directions = float64(sae.W_dec) / np.linalg.norm(float64(sae.W_dec), axis=1, keepdims=True)
    maxima = {feature: 1.15**feature for feature in range(1, F)}
    units = Units(sae, maxima=maxima, median_norm=None, source="a text", tokens=10)
    for feature in range(1, F):
        aside = [o for o in maxima if o != feature and abs(directions[o] @ directions[feature]) < 0.2]
        apart = {o: max(maxima[o] / maxima[feature], maxima[feature] / maxima[o]) for o in aside}
        alike = {o for o in aside if apart[o] <= 1.2}
        for seed in range(4):
            if not aside:
                with pytest.raises(InputError, match="use noise"):
                    random_feature(sae, feature, units, seed)
                continue
            found = random_feature(sae, feature, units, seed)
            assert found in alike if alike else apart[found] == min(apart.values())
            assert random_feature(sae, feature, units, seed) == found
    drawn = noise(sae, 3, 1)
    assert float(drawn.norm()) == pytest.approx(float(sae.W_dec[3].norm()), rel=1e-5)
    assert torch.equal(drawn, noise(sae, 3, 1))
    assert not torch.allclose(drawn, noise(sae, 3, 2))
