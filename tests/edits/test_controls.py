"""What strengths are measured by, and what stands in the place of features, down to the dice and the tokens read."""

from __future__ import annotations

import pytest
import torch

from by_hand import features64, model_of, random_sae
from gemscope.edits.controls import Act, noise, random_feature
from gemscope.edits.steer import Steer
from gemscope.edits.strength import Amount
from gemscope.edits.units import Units
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.text.corpus import Corpus

WORDS = "the sun and the moon in the air, a light in the sea and on the land of the other morning "


def units_of(sae: SAE, largest: float) -> Units:
    """The first twelve features fire, all of them as strongly."""
    maxima = dict.fromkeys(range(12), largest)
    return Units(sae, maxima=maxima, median_norm=4.0, source="a text", tokens=10)


def test_units_are_of_the_batches_that_complete_the_tokens_and_of_where_the_sae_writes() -> None:
    model = model_of("llama")
    sae = random_sae(model, "1.transcoder", site_out="1.mlp")
    corpus = Corpus.of([WORDS * 20] * 12)
    length = min(256, model.context)
    batches = list(model.rows(corpus, length=length, batch=8))
    assert len(batches) > 2
    read = [int(rows.real.sum()) for rows in batches]
    for tokens, taken in ((1, 1), (read[0], 1), (read[0] + 1, 2), (sum(read) + 1, len(batches))):
        units = Units.measured(model, sae, corpus, tokens=tokens)
        found = [model.capture(rows, ["1.transcoder", "1.mlp"]) for rows in batches[:taken]]
        x = torch.cat([captured["1.transcoder"].rows for captured in found])
        written = torch.cat([captured["1.mlp"].rows for captured in found])
        assert units.tokens == len(x)
        assert units.median_norm == pytest.approx(written.norm(dim=-1).median().item(), rel=1e-5)
        peak = features64(sae, x).amax(0)
        assert [units.raw(feature, 1.0).of_max for feature in range(48)] == [
            pytest.approx(1 / value, rel=1e-3) if value > 0 else None for value in peak.tolist()
        ]


@pytest.mark.parametrize(
    "corpus", [Corpus.of(["a"]), Corpus.of(["", "a"]).take(1)], ids=["a first position", "nothing"]
)
def test_text_of_which_nothing_counts_measures_nothing(corpus: Corpus) -> None:
    model = model_of("gpt2")  # no BOS: the first position is the text's own
    with pytest.raises(InputError, match="gave no token that counts: nothing to measure strengths against"):
        Units.measured(model, random_sae(model, "1.res"), corpus)


def test_each_feature_has_a_control_by_dice_of_its_own_as_strong_and_on_the_same_tokens() -> None:
    sae = random_sae(model_of("llama"), "1.res")
    units = units_of(sae, 10.0)
    act = Act(how="add", sae=sae, units=units, seed=7, at="generated", every_token=True)
    by: dict[int, Amount | float] = {3: Amount(2.0, "max"), 5: Amount(-1.5), 8: 0.5}
    raw = [20.0, -1.5, 0.5]
    taken = set(by)
    for place, (feature, edit) in enumerate(zip(by, act.random([*by]).edits(by), strict=True)):
        other = random_feature(sae, feature, units, 7 + place, without=taken)
        taken.add(other)
        assert isinstance(edit, Steer)
        assert edit.of == (sae, other)
        assert (edit.strength and edit.strength.raw, edit.at, edit.every_token) == (raw[place], "generated", True)
    for place, (feature, edit) in enumerate(zip(by, act.noise().edits(by), strict=True)):
        assert isinstance(edit, Steer)
        assert (edit.of, str(edit.site)) == (None, "1.res")
        assert torch.equal(edit.direction(torch.zeros(1)), noise(sae, feature, 7 + place))
        assert (edit.strength and edit.strength.raw, edit.at, edit.every_token) == (raw[place], "generated", True)


def test_a_control_is_none_of_those_that_are_taken_nor_one_that_never_fires() -> None:
    sae = random_sae(model_of("llama"), "1.res")
    for largest in (1.0, 10.0):
        units = units_of(sae, largest)
        found = {random_feature(sae, 0, units, seed) for seed in range(60)}
        assert len(found) > 5
        assert found < set(range(1, 12))
    some = set(list(found)[::2])
    assert {random_feature(sae, 0, units, seed, without=some) for seed in range(60)} <= found - some
