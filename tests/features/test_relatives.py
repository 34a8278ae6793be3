"""Relatives across sites: planted features that last, end and begin are told, and every figure is that of a slow one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gemscope.edits.clamp import Ablate
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFound, SiteNotFound
from gemscope.features.effect import effect
from gemscope.features.relating import relate
from gemscope.features.relatives import FIGURES, Kin, lives
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import PlantedLayers, planted_layers, planted_sae
from gemscope.text.corpus import Corpus

ASKED = {"tokens": 3000, "length": 64, "effect_tokens": 96}


@cache
def planted() -> PlantedLayers:
    return planted_layers()


@cache
def found() -> tuple[Kin, ...]:
    return relate(planted().model, planted().saes, planted().corpus, **ASKED)


def named(at: int, feature: int) -> str | None:
    return planted().names[at][feature] if feature >= 0 else None


def random_sae(at: int, seed: int) -> SAE:
    """Directions drawn by chance, that fire now and then."""
    one = planted().saes[at]
    sae = SAE(one.d_in, one.d_sae, site=one.site, info=SAEInfo(name="random"))
    rows = torch.randn(one.d_sae, one.d_in, generator=torch.Generator().manual_seed(seed))
    rows -= rows @ one.b_dec[:, None] / one.b_dec.norm() ** 2 * one.b_dec  # the constant is none of their business
    rows /= rows.norm(dim=-1, keepdim=True)
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    assert sae.threshold is not None
    sae.threshold.fill_(1.0)
    return sae


# --- what is planted --------------------------------------------------------------------------------------------------


def test_the_planted_model_has_the_features_that_it_says_and_no_others() -> None:
    here = planted()
    rows = next(here.model.rows(here.corpus, length=64, batch=20))
    for at, sae in enumerate(here.saes):
        read = here.model.capture(rows, [f"{at}.res"])[f"{at}.res"]
        features, out = sae.read(read)
        x = read.rows
        assert ((out[read.counted] - x) ** 2).sum() < 0.02 * ((x - x.mean(0)) ** 2).sum()
        assert features.firing >= sae.d_sae - 2  # of a pair of features no token may have both
    for name, (born, gone) in here.lives.items():
        assert [name in names for names in here.names] == [born <= at <= gone for at in range(len(here.saes))]


def test_features_that_go_on_are_found_and_all_others_are_not() -> None:
    right = wrong = missed = 0
    for at, kin in enumerate(found()):
        for relation in kin.relations:
            there = at + (1 if relation.about.later else -1)
            for feature, nearest in enumerate(relation.nearest()[0].tolist()):
                name, to = named(at, feature), named(there, nearest)
                right += to == name
                wrong += to not in (None, name)
                missed += name in planted().names[there] and to != name
    assert right >= 90
    assert right / (right + wrong) == 1.0  # precision
    assert right / (right + missed) == 1.0  # recall


def test_where_features_begin_and_end_is_told() -> None:
    for at, kin in enumerate(found()):
        assert kin.lives is not None
        assert [one.site for one in kin.lives.chain] == ["0.res", "1.res", "2.res", "3.res"]
        for feature, name in enumerate(planted().names[at]):
            born, gone = planted().lives[name]
            assert [one.site for one in kin.lives.of(feature)] == [f"{born}.res", f"{gone}.res"]


def test_neither_a_direction_nor_the_same_tokens_alone_make_a_feature_go_on() -> None:
    """A turning feature writes along the axis of the one before it; a copy fires on the tokens of another."""
    one = found()[0]
    turning = planted().names[0].index("turning 0 in 0")
    copied = planted().names[0].index("lasting 1")
    there = {named(1, pair.feature): pair for pair in one.relations[0].of(turning)}
    if (pair := there.get("turning 0 in 1")) is not None:
        assert pair.cosine is not None
        assert pair.cosine > 0.95
        assert pair.correlation < one.relations[0].about.bounds.correlation
    copy = {named(1, pair.feature): pair for pair in one.relations[0].of(copied)}["copy in 1"]
    assert copy.correlation > 0.9
    assert copy.cosine is not None
    assert abs(copy.cosine) < 0.2
    assert copy.effect is not None
    assert copy.effect > 0.5  # what fires because of it
    assert named(1, int(one.relations[0].nearest()[0][copied])) == "lasting 1"


def test_a_feature_that_a_block_makes_of_others_is_raised_most_by_them() -> None:
    here = planted()
    made = 0
    for name, parents in here.parents.items():
        at = here.lives[name][0]
        child = here.names[at].index(name)
        before = found()[at].relations[0]
        assert not before.about.later
        if "turning" not in name:
            most = max(before.of(child), key=lambda one: one.effect or 0)
            assert named(at - 1, most.feature) in parents
            made += 1
    assert made == 9


def test_features_drawn_by_chance_hardly_go_on() -> None:
    here = planted()
    saes = [random_sae(0, seed=1), random_sae(1, seed=2)]
    kin = relate(here.model, saes, here.corpus, **ASKED)
    for one in kin:
        ids, _ = one.relations[0].nearest()
        planted_share = np.mean([(kin.relations[0].nearest()[0] >= 0).mean() for kin in found()[:2]])
        assert planted_share > 0.6
        assert (ids >= 0).mean() < planted_share / 2


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_of_every_pair_is_that_of_a_dense_numpy() -> None:
    here = planted()
    one, other = here.saes[1], here.saes[2]
    J = effect(here.model, "1.res", here.corpus, until="2.res", tokens=96)
    kin = relate(here.model, [other, one], here.corpus, effects=[J], k=3, **ASKED)
    assert [some.own.site for some in kin] == ["1.res", "2.res"]  # in the model's order, however they were given
    dense: list[list[np.ndarray]] = [[], []]
    tokens = 0
    for rows in here.model.rows(here.corpus, length=64, batch=16):
        if tokens >= ASKED["tokens"]:
            break
        read = here.model.capture(rows, ["1.res", "2.res"])
        for at, sae in enumerate((one, other)):
            dense[at].append(sae.encode_dense(read[sae.site].rows).double().numpy())
        tokens += len(dense[0][-1])
    a, b = (np.concatenate(some) for some in dense)
    assert kin[0].relations[0].about.text.tokens == len(a)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :])
        means = [np.nan_to_num(some.sum(0) / (some > 0).sum(0)) for some in (a, b)]
        units = [sae.W_dec.double().numpy() for sae in (one, other)]
        cosine = (units[0] / np.linalg.norm(units[0], axis=1)[:, None]) @ (
            units[1] / np.linalg.norm(units[1], axis=1)[:, None]
        ).T
        raw = units[0] @ J.jacobian().double().numpy().T @ other.W_enc.double().numpy()
        share = np.nan_to_num(raw * means[0][:, None] / means[1][None], posinf=0, neginf=0)
    both = (a > 0).T.astype(int) @ (b > 0).astype(int)
    truth = {"cosine": cosine, "correlation": correlation, "effect": share}
    for at, some in enumerate(kin):
        relation = some.relations[0]
        for feature in range(some.own.d_sae):
            pairs = relation.of(feature)
            assert [pair.correlation for pair in pairs] == sorted((pair.correlation for pair in pairs), reverse=True)
            kept = {pair.feature for pair in pairs}
            for pair in pairs:
                place = (feature, pair.feature) if at == 0 else (pair.feature, feature)
                assert pair.both == both[place]
                for name in FIGURES:
                    assert getattr(pair, name) == pytest.approx(truth[name][place], abs=2e-4)
            for name in FIGURES:
                row = truth[name][feature] if at == 0 else truth[name][:, feature]
                if name == "correlation":
                    row = np.where((both[feature] if at == 0 else both[:, feature]) >= 2, row, 0)
                best = int(np.argmax(row))
                assert row[best] <= 1e-3 or best in kept
            row = truth["effect"][feature] if at == 0 else truth["effect"][:, feature]
            assert row.min() >= -1e-3 or int(row.argmin()) in kept


def test_the_mean_effect_is_what_ablating_does_where_everything_is_linear() -> None:
    """Between two sites of the planted model, what a lasting feature writes goes straight through."""
    here = planted()
    one, other = here.saes[1], here.saes[2]
    J = effect(here.model, "1.res", here.corpus, until="2.res", tokens=96)
    rows = next(here.model.rows(here.corpus, length=64, batch=8))
    clean = here.model.capture(rows, ["1.res", "2.res"])
    fired = one.encode(clean["1.res"]).to_dense()[clean["1.res"].counted]
    for name in ("lasting 0", "lasting 3", "ending 0 in 3"):
        feature = here.names[1].index(name)
        with here.model.edited(Ablate(one, feature)):
            after = here.model.capture(rows, ["2.res"], every_token=True)["2.res"].values[clean["1.res"].counted]
        change = (clean["2.res"].rows - after).sum(0) @ other.W_enc.float() / fired[:, feature].sum()
        predicted = one.W_dec[feature].float() @ J.jacobian().T @ other.W_enc.float()
        own = here.names[2].index(name)
        assert predicted[own] == pytest.approx(1.0, abs=0.1)
        assert change[own] == pytest.approx(predicted[own].item(), abs=0.05)


def test_sites_that_nothing_leads_between_have_no_effect_and_say_why() -> None:
    here = planted()
    one, other = planted_sae(site="1.res").sae, planted_sae(site="embed", seed=1).sae
    kin = relate(here.model, [one, other], here.corpus, tokens=300, length=64)
    about = kin[0].relations[0].about
    assert [some.own.site for some in kin] == ["embed", "1.res"]
    assert about.effect is None
    assert about.bounds.effect is None
    assert about.why == "the model does not read what is written at embed"
    assert all(pair.effect is None for feature in range(one.d_sae) for pair in kin[1].relations[0].of(feature))


def test_directions_of_different_widths_have_no_cosine_and_a_feature_may_go_on_without() -> None:
    here = planted()
    d = here.model.width("1.att")
    att = SAE(d, 8, site="1.att", info=SAEInfo(name="att"))
    kin = relate(here.model, [att, here.saes[1]], here.corpus, tokens=300, length=64, effect_tokens=64)
    about = kin[0].relations[0].about
    assert about.bounds.cosine is None
    assert "no cosine" in about.why
    assert about.effect is not None


def test_where_one_writes_what_the_other_reads_the_effect_is_the_product_of_both() -> None:
    here = planted()
    sae = here.saes[1]
    other = random_sae(1, seed=3)
    kin = relate(here.model, [sae, other], here.corpus, tokens=600, length=64)
    relation = next(one for one in kin if one.own.digest == sae.digest).relations[0]
    assert relation.about.effect is not None
    assert relation.about.effect.tokens == 0


@pytest.mark.parametrize(
    ("saes", "options", "error", "said"),
    [
        ((), {}, InputError, "0 SAE given"),
        ((0,), {}, InputError, "1 SAE given"),
        ((0, 0), {}, InputError, "one SAE is given twice"),
        ((0, 1), {"tokens": 1}, InputError, "expected at least 2 and 1"),
        ((0, 1), {"k": 0}, InputError, "expected at least 2 and 1"),
    ],
)
def test_a_mistake_is_one_line(
    saes: tuple[int, ...], options: dict[str, int], error: type[Exception], said: str
) -> None:
    here = planted()
    with pytest.raises(error, match=said) as caught:
        relate(here.model, [here.saes[at] for at in saes], here.corpus, **options)
    assert "\n" not in str(caught.value)


def test_an_sae_of_another_width_or_of_no_site_is_one_line() -> None:
    here = planted()
    with pytest.raises(Mismatch):
        relate(here.model, [here.saes[0], planted_sae(16, 32, site="1.res").sae], here.corpus)
    bare = planted_sae().sae
    bare.site = bare.site_out = None
    with pytest.raises(InputError, match="does not say where it reads"):
        relate(here.model, [here.saes[0], bare], here.corpus)
    with pytest.raises(SiteNotFound):
        relate(here.model, [here.saes[0], planted_sae(site="9.res").sae], here.corpus)


# --- going on, and the file -------------------------------------------------------------------------------------------


def test_what_was_stopped_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = planted()
    asked = {"tokens": 600, "length": 32, "batch": 4, "effect_tokens": 64}
    whole = relate(here.model, here.saes[:2], here.corpus, **asked)
    from gemscope.features import relating

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(relating, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        relate(here.model, here.saes[:2], here.corpus, to=tmp_path / "kept", **asked)
    monkeypatch.undo()
    again = relate(here.model, here.saes[:2], here.corpus, to=tmp_path / "kept", **asked)
    assert (tmp_path / "kept" / "0.res-1.res.effect").is_file()
    assert [one.digest for one in again] == [one.digest for one in whole]
    with pytest.raises(InputError, match="another tokens"):
        relate(here.model, here.saes[:2], here.corpus, to=tmp_path / "kept", **{**asked, "tokens": 700})


def test_relatives_are_read_as_they_were_saved(tmp_path: Path) -> None:
    for at, kin in enumerate(found()):
        labelled = replace(kin, relations=tuple(replace(one, labels={0: "<b>hostile</b>\n"}) for one in kin.relations))
        read = Kin.load(labelled.save(tmp_path / f"{at}.safetensors"))
        assert read.digest == labelled.digest
        assert (read.own, read.model) == (kin.own, kin.model)
        assert [one.about for one in read.relations] == [one.about for one in kin.relations]
        assert read.relations[0].labels == {0: "<b>hostile</b>\n"}
        assert read.relations[0].of(3) == kin.relations[0].of(3)
        assert read.lives is not None
        assert read.lives.of(2) == kin.lives.of(2)  # type: ignore[union-attr]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = found()[1].save(tmp_path / "one.safetensors")
    whole = path.read_bytes()
    for place in (5, 200, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 0x15
        path.write_bytes(data)
        with pytest.raises(CorruptFile) as caught:
            Kin.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile):
        Kin.load(path)
    with pytest.raises(NotFound):
        Kin.load(tmp_path / "none.safetensors")
    with pytest.raises(CorruptFile, match="holds no relatives"):
        Kin.load(effect(planted().model, "0.res", planted().corpus, tokens=48).save(tmp_path / "an.effect"))


def test_relations_found_before_stay_and_those_of_another_sae_are_refused() -> None:
    one, other = found()[1], found()[2]
    below, above = (replace(one, relations=(some,), lives=None) for some in one.relations)
    assert [some.other.site for some in above.with_others(below).relations] == ["0.res", "2.res"]
    assert above.with_others(one).lives is one.lives
    assert len(above.with_others(above).relations) == 1
    with pytest.raises(Mismatch, match="are none of"):
        one.with_others(other)


def test_a_chain_that_is_broken_has_no_lives() -> None:
    with pytest.raises(NotFound, match="find these first"):
        lives((found()[0], found()[2]))


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    here = planted()
    texts = Corpus.of(["the sun and the moon in the air, a light in the sea and on the land"] * 6)
    first, second = (
        relate(here.model, here.saes[:2], texts, tokens=100, length=16, effect_tokens=32)[0].save(tmp_path / name)
        for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
