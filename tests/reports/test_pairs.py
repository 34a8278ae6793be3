"""Two features, two texts, two SAEs side by side, against what a plain pass over the text says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gemscope as gs
from atlases import planted_atlas
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.run import describe
from gemscope.errors import EmptyText, Mismatch
from gemscope.features.held_out import hashes, is_held_out
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports.atlas_pair import compare_atlases
from gemscope.reports.feature_pair import compare_features
from gemscope.reports.text_pair import compare_texts
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG as SMALL
from texts import varied

CORPUS = Corpus.of(varied(0, 400))
CONFIG = replace(SMALL, batch=64)
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(1))
"""The second SAE's feature i is feature ORDER[i] of the first; of the last eight it has others in their place."""
OTHERS = 8


def shuffled(sae: SAE) -> SAE:
    """Its features in another order, a few replaced by some that read and write elsewhere."""
    made = SAE(sae.d_in, sae.d_sae, site=sae.site, info=SAEInfo(name="shuffled"))
    draw = torch.Generator().manual_seed(2)
    assert made.threshold is not None
    assert sae.threshold is not None
    with torch.no_grad():
        made.W_dec.copy_(sae.W_dec[ORDER])
        made.W_enc.copy_(sae.W_enc[:, ORDER])
        made.b_enc.copy_(sae.b_enc[ORDER])
        made.threshold.copy_(sae.threshold[ORDER])
        made.b_dec.copy_(sae.b_dec)
        made.W_dec[-OTHERS:] = torch.nn.functional.normalize(torch.randn(OTHERS, sae.d_in, generator=draw), dim=1)
        made.W_enc[:, -OTHERS:] = made.W_dec[-OTHERS:].T
    return made


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def saes() -> tuple[SAE, SAE]:
    first = planted_sae(site="1.res", seed=3).sae
    return first, shuffled(first)


@pytest.fixture(scope="module")
def atlases(
    model: LanguageModel, saes: tuple[SAE, SAE], tmp_path_factory: pytest.TempPathFactory
) -> tuple[gs.Atlas, gs.Atlas]:
    one, other = describe(model, saes, CORPUS, to=tmp_path_factory.mktemp("atlases") / "both", config=CONFIG)
    return one, other


@pytest.fixture(scope="module")
def held(model: LanguageModel, saes: tuple[SAE, SAE]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ids [N] of the counted tokens of rows that are held out, and each SAE's activations [N, F] there, densely."""
    ids, found, seen = [], [[], []], set()
    for rows in model.rows(CORPUS, length=CONFIG.length, batch=CONFIG.batch):
        acts = model.capture(rows, ["1.res"])[saes[0].site]
        plain = rows.ids.masked_fill(~rows.real, -1).numpy()
        apart = is_held_out(hashes(plain, acts.counted.numpy()))
        dense = [sae.encode_dense(acts.values) for sae in saes]
        for row in np.flatnonzero(apart & acts.counted.numpy().any(1)):
            if (key := plain[row].tobytes()) not in seen:
                seen.add(key)
                counted = acts.counted[row]
                ids.append(plain[row][counted.numpy()])
                for each, values in zip(found, dense, strict=True):
                    each.append(values[row][counted].detach().numpy())
    return np.concatenate(ids), [np.concatenate(each) for each in found]


# --- features ---------------------------------------------------------------------------------------------------------


def test_where_two_features_fire_is_counted_on_the_rows_held_out(
    atlases: tuple[gs.Atlas, gs.Atlas], held: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    _, (dense, _) = held
    often = np.argsort(-(dense > 0).sum(0))[:4].tolist()
    for one in often:
        for other in often:
            shares = compare_features(atlases[0], one, other).shares
            assert shares is not None
            a, b = dense[:, one] > 0, dense[:, other] > 0
            assert (shares.tokens, shares.one, shares.other, shares.both) == (len(a), a.sum(), b.sum(), (a & b).sum())
            assert shares.jaccard == pytest.approx((a & b).sum() / (a | b).sum())
            assert shares.share == pytest.approx(((a & b).sum() / a.sum(), (a & b).sum() / b.sum()))


def test_tokens_that_tell_two_features_apart_are_those_with_the_largest_g2(
    atlases: tuple[gs.Atlas, gs.Atlas], held: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    ids, (dense, _) = held
    one, other = np.argsort(-(dense > 0).sum(0))[[0, 3]].tolist()
    found = compare_features(atlases[0], one, other)
    mantissas, exponents = np.frexp(dense)
    kept = np.ldexp(np.floor(mantissas * 16) / 16, exponents)  # as activations are kept, in eighths of powers of two
    strong = [kept[:, index] >= 0.25 * atlases[0][index].max for index in (one, other)]
    table = {
        atlases[0].token(int(id_)): (*(int((mask & (ids == id_)).sum()) for mask in strong), int((ids == id_).sum()))
        for id_ in np.unique(ids)
    }
    totals = [int(mask.sum()) for mask in strong]
    assert found.contrasts
    for contrast in found.contrasts:
        a, b, stands = table[contrast.token]
        assert (contrast.one, contrast.other, contrast.of) == (a, b, stands)
        rest = [[a, b], [totals[0] - a, totals[1] - b]]
        whole = sum(totals)
        g2 = 2 * sum(
            seen * math.log(seen * whole / (sum(row) * total))
            for row in rest
            for seen, total in zip(row, totals, strict=True)
            if seen
        )
        assert abs(contrast.telling) == pytest.approx(g2)
        assert (contrast.telling > 0) == (a / totals[0] > b / totals[1])


def test_the_same_feature_of_another_sae_is_the_same_in_everything(
    atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE], held: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    _, (dense, _) = held
    mine = int(np.argmax((dense[:, ORDER[:-OTHERS]] > 0).sum(0)))
    found = compare_features(atlases[0], int(ORDER[mine]), mine, beside=atlases[1], saes=saes)
    assert found.cosine == pytest.approx(1.0)
    assert found.shares is not None
    assert found.shares.one == found.shares.other == found.shares.both > 0
    assert not found.contrasts
    assert not found.places["one"]
    assert not found.places["other"]
    assert len(found.promoted) == CONFIG.logits
    assert found.own == ([], [])


def test_a_cosine_is_computed_read_off_a_page_or_bounded_by_it(
    atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE]
) -> None:
    rows = saes[0].W_dec.detach().double()
    cosines = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).T
    for other in range(1, 64):
        exact = compare_features(atlases[0], 0, other, saes=(saes[0], saes[0]))
        assert exact.cosine == pytest.approx(float(cosines[0, other]), abs=1e-9)
        listed = compare_features(atlases[0], 0, other)
        if listed.cosine is not None:
            assert listed.cosine == pytest.approx(float(cosines[0, other]), abs=2e-3)
        elif listed.cosine_below is not None:
            assert listed.cosine_below >= float(cosines[0, other]) - 2e-3


def test_places_show_one_feature_without_the_other(
    atlases: tuple[gs.Atlas, gs.Atlas], held: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    _, (dense, _) = held
    one, other = np.argsort(-(dense > 0).sum(0))[:2].tolist()
    found = compare_features(atlases[0], one, other)
    alone = dense[:, one] * (dense[:, other] == 0)
    first = found.places["one"][0]
    # Kept in eighths of powers of two.
    assert 0.875 * alone.max() <= first.one.value <= alone.max() * 1.0001
    assert all(place.one.value > 0 and place.other.value == 0 for place in found.places["one"])
    assert all(place.other.value > 0 and place.one.value == 0 for place in found.places["other"])
    assert all(place.one.value > 0 and place.other.value > 0 for place in found.places["both"])


def test_an_atlas_without_rows_held_out_is_told_apart_by_examples(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "atlas") as atlas:
        found = compare_features(atlas, 3, 4)
        assert found.shares is None
        assert [one.of for one in found.contrasts] == [0, 0]
        for page, sign in ((atlas[3], 1), (atlas[4], -1)):
            mine = [one for one in found.contrasts if one.telling * sign > 0]
            assert [one.token for one in mine] == [page.strongest[0].tokens[page.strongest[0].peak]]
        assert "strongest examples" in found.telling
        json.dumps(found.to_dict(), allow_nan=False)
        assert str(found).startswith("3 · ")


# --- texts ------------------------------------------------------------------------------------------------------------

ONE, OTHER = "the river sang of the sun and the hours", "the river sang of another order and hours"


def tops(model: LanguageModel, sae: SAE, text: str, first: int) -> np.ndarray:
    acts = model.capture(text, ["1.res"])[sae.site]
    dense = sae.encode_dense(acts.values)[0] * acts.counted[0][:, None]
    return dense[first:].max(0).values.detach().numpy()


def test_features_of_one_text_alone_are_those_that_fire_behind_what_both_begin_with(
    model: LanguageModel, saes: tuple[SAE, SAE]
) -> None:
    sae = saes[0]
    found = compare_texts(model, sae, ONE, OTHER, k=64)
    ids = [model.tokens(text).ids[0].tolist() for text in (ONE, OTHER)]
    same = next(n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert found.same == same > 1
    one, other = (tops(model, sae, text, same) for text in (ONE, OTHER))
    for ones, mask, values in (
        (found.only_one, (one > 0) & (other == 0), one),
        (found.only_other, (other > 0) & (one == 0), other),
    ):
        assert {each.feature for each in ones} == set(np.flatnonzero(mask).tolist())
        strengths = [max(each.one, each.other) for each in ones]
        assert strengths == sorted(strengths, reverse=True)
        assert strengths == pytest.approx(values[[each.feature for each in ones]].tolist(), rel=1e-4)
    assert found.shared == int(((one > 0) & (other > 0)).sum())
    assert {each.feature for each in found.both} == set(np.flatnonzero((one > 0) & (other > 0)).tolist())
    for each in (*found.only_one, *found.both):
        assert each.at_one is not None
        assert each.at_one >= same
        assert each.values[0][each.at_one] == pytest.approx(each.one)


def test_an_atlas_says_what_is_telling(
    model: LanguageModel, saes: tuple[SAE, SAE], atlases: tuple[gs.Atlas, gs.Atlas]
) -> None:
    found = compare_texts(model, saes[0], ONE, OTHER, k=64, atlas=atlases[0])
    assert found.order == "telling"
    for each in found.both:
        page = atlases[0][each.feature]
        weight = 0.0 if page.dead else math.log(1 / page.density) / page.max / 2
        assert each.telling == pytest.approx(weight * (each.one - each.other), rel=1e-4, abs=1e-6)


def test_tokens_stand_beside_the_same_ones(model: LanguageModel, saes: tuple[SAE, SAE]) -> None:
    found = compare_texts(model, saes[0], ONE, OTHER)
    one, other = [row.one for row in found.aligned], [row.other for row in found.aligned]
    for side, indices in ((found.one, one), (found.other, other)):
        assert [at for at in indices if at is not None] == list(range(found.same, len(side.tokens)))
    last = found.aligned[-1]
    assert last.one is not None
    assert last.other is not None
    assert found.one.tokens[last.one] == found.other.tokens[last.other]


def test_texts_that_are_the_same_or_one_the_others_beginning(model: LanguageModel, saes: tuple[SAE, SAE]) -> None:
    same = compare_texts(model, saes[0], ONE, ONE)
    assert (same.only_one, same.only_other, same.both, same.aligned) == ((), (), (), ())
    assert "sets the texts apart" in str(same)
    json.dumps(same.to_dict(), allow_nan=False)
    longer = compare_texts(model, saes[0], ONE, f"{ONE} and the river")
    assert not longer.only_one
    assert longer.only_other
    with pytest.raises(EmptyText):
        compare_texts(model, saes[0], "", ONE)


# --- SAEs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["decoder", "firing"])
def test_features_in_another_order_are_matched_and_those_that_are_new_are_left_over(
    by: str, atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE]
) -> None:
    found = compare_atlases(*atlases, saes=saes if by == "decoder" else None, k=64)
    matching = found.matching
    assert matching is not None
    assert matching.by == by
    pairs = {(pair.one, pair.other) for pair in matching.pairs}
    expected = {(int(theirs), mine) for mine, theirs in enumerate(ORDER.tolist()) if mine < 64 - OTHERS}
    living = [set(atlas.scatter()[0].tolist()) for atlas in atlases]
    alive = {pair for pair in expected if pair[0] in living[0] and pair[1] in living[1]}
    if by == "decoder":
        assert alive <= pairs
        assert matching.same == len(alive)
        assert {one.feature for one in matching.alone[1]} <= set(range(64 - OTHERS, 64))
        assert all(pair.value == pytest.approx(1.0, abs=1e-5) for pair in matching.pairs if tuple(pair[:2]) in alive)
    else:  # what fires on fewer than two tokens there, or on the same ones as another, cannot be told
        told = [pair for pair in matching.pairs if pair.value == 1.0]
        assert len(told) > 10
        assert sum((pair.one, pair.other) in alive for pair in told) >= 0.9 * len(told)


def test_the_mean_max_cosine_is_the_plain_formula_both_ways(
    atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE]
) -> None:
    matching = compare_atlases(*atlases, saes=saes).matching
    assert matching is not None
    rows = [sae.W_dec.double() / sae.W_dec.double().norm(dim=1, keepdim=True) for sae in saes]
    cosines = rows[0] @ rows[1].T
    living = [atlas.scatter()[0] for atlas in atlases]
    best = cosines.max(dim=1).values[living[0]], cosines.max(dim=0).values[living[1]]
    back = cosines.argmax(dim=0)
    mutual = sum(
        back[other] == one and other in living[1]
        for one, other in enumerate(cosines.argmax(dim=1).tolist())
        if one in living[0]
    )
    for mean, median, spread, values in zip(matching.mean, matching.median, matching.spread, best, strict=True):
        assert mean == pytest.approx(values.mean().item(), abs=1e-5)
        assert median == pytest.approx(values.quantile(0.5).item(), abs=1e-5)
        assert sum(spread.counts) == len(values)
        assert sum(spread.counts[-2:]) == sum(value >= 0.9 for value in values.clamp(max=1).tolist())
    assert matching.mutual == mutual
    assert matching.mean[0] != matching.mean[1]


def test_how_far_each_is_in_the_other_is_said_in_figures(
    atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE]
) -> None:
    found = compare_atlases(*atlases, saes=saes)
    matching = found.matching
    assert matching is not None
    said = {name: (one, other) for name, one, other in found.shares()}
    assert said["mean max cosine similarity"] == tuple(f"{mean:.3f}" for mean in matching.mean)
    assert said["in one alone"][0].startswith(f"{matching.lonely[0]} (")
    assert f"{matching.mean[0]:.3f}" in str(found)
    assert next(iter(compare_atlases(*atlases).shares()))[0] == "mean best Jaccard index"


def test_figures_are_those_of_the_atlases(atlases: tuple[gs.Atlas, gs.Atlas]) -> None:
    found = compare_atlases(*atlases)
    for figures, atlas in zip(found.figures, atlases, strict=True):
        pages = list(atlas)
        assert figures.living == sum(not page.dead for page in pages)
        assert figures.l0 == pytest.approx(sum(page.count for page in pages) / atlas.manifest.tokens)
        assert figures.dense == sum(page.density > 0.1 for page in pages)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "fire" in found.why


def test_atlases_of_two_models_are_not_matched_and_foreign_weights_are_refused(
    atlases: tuple[gs.Atlas, gs.Atlas], saes: tuple[SAE, SAE], tmp_path: Path
) -> None:
    with planted_atlas(tmp_path / "atlas") as foreign:
        found = compare_atlases(atlases[0], foreign)
        assert found.matching is None
        assert "two models" in found.why
    with pytest.raises(Mismatch):
        compare_atlases(*atlases, saes=saes[::-1])
