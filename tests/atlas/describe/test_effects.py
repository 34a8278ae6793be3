"""What an atlas keeps of the effect of its site: measured with it or given, put in later, merged; and which features
promote a token.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from atlases import change_json, change_sql, content, powerless
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe import run
from gemscope.atlas.describe.effects import add_effect, writings
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.atlas.entry import AGREED
from gemscope.atlas.files.whole import EFFECT
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile, Mismatch
from gemscope.features.effect import Effect, effect
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae
from gemscope.text.corpus import Corpus
from texts import CONFIG

WITH = replace(CONFIG, effect=48)
OLDER = (*(f"DROP TABLE {name}" for name in ("written", "token_written", "plane")), "PRAGMA user_version = 3")


@pytest.fixture(scope="module")
def measured(model: LanguageModel, corpora: list[Corpus]) -> Effect:
    return effect(model, "1.res", corpora[0], tokens=48)


@pytest.fixture(scope="module")
def whole(model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return describe(model, sae, corpora[0], to=tmp_path_factory.mktemp("effects") / "whole", config=WITH)


def older(folder: Path) -> None:
    """As a version that knew of no effects left it."""
    change_sql(folder, *OLDER)
    document = json.loads((folder / "manifest.json").read_text())
    for name in ("effect", "no_effect", "map", "no_map"):
        document.pop(name)
    document["options"].pop("effect", None)
    (folder / "manifest.json").write_text(json.dumps(document | {"format": 3}))


def test_describe_measures_it_over_its_text_and_keeps_it(
    model: LanguageModel, sae: SAE, whole: Atlas, measured: Effect
) -> None:
    kept = Effect.load(whole.folder / EFFECT)
    assert kept.digest == measured.digest
    of = whole.manifest.effect
    assert of is not None
    assert (of.tokens, of.corpus, of.digest) == (measured.of.tokens, "texts", measured.digest)
    assert whole.manifest.no_effect is None
    assert f"effect on the logits measured over {of.tokens} tokens of texts" in str(whole)
    for feature, one in enumerate(writings(model, sae, measured, k=4)):
        assert one is not None
        stored, page = whole.entry(feature).written, whole[feature].writes
        assert stored is not None
        assert page is not None
        assert stored.promoted.tolist() == one.promoted.tolist() == [logit.id for logit in page.promoted]
        texts = [text.decode(errors="backslashreplace") for text in model.token_bytes(one.promoted.tolist())]
        assert [logit.token for logit in page.promoted] == texts
        assert stored.promoted_values == pytest.approx(one.promoted_values, rel=1e-3)
        assert stored.suppressed.tolist() == one.suppressed.tolist()
        assert (stored.spread, stored.agreement, stored.this, stored.words) == (
            one.spread, one.agreement, one.this, one.words,
        )  # fmt: skip
        assert page.agreed == (one.agreement >= AGREED)
        told = whole[feature].to_dict()["effect"]
        assert told["pos_str"] == [logit.token for logit in page.promoted]
        assert whole[feature].to_dict()["pos_str"] == [logit.token for logit in whole[feature].promoted]
    assert verify(whole.folder) == []


def test_a_token_leads_to_the_features_that_promote_it_most(model: LanguageModel, sae: SAE, whole: Atlas) -> None:
    expected: dict[int, list[tuple[float, int, int]]] = {}
    kept = Effect.load(whole.folder / EFFECT)
    for feature, one in enumerate(writings(model, sae, kept, k=4)):
        assert one is not None
        if one.agreement >= AGREED:
            for place, (token, value) in enumerate(zip(one.promoted.tolist(), one.promoted_values, strict=True)):
                expected.setdefault(token, []).append((value / one.spread, feature, place))
    assert len(expected) > 20
    for token, some in expected.items():
        found = whole.promoting(token)
        assert {(one.summary.feature, one.place) for one in found} == {(feature, place) for _, feature, place in some}
        heights = [one.stands_out for one in found]
        assert heights == sorted(heights, reverse=True)
        assert sorted(heights) == pytest.approx(sorted(height for height, *_ in some), rel=2e-3)
    (text, ids) = next((text, [token]) for token in expected for text in model.strings([token]) if text.strip())
    alike = [
        id_
        for id_, one in enumerate(model.strings(range(model.vocab)))
        if one.strip().casefold() == text.strip().casefold()
    ]
    assert set(ids) <= set(alike)
    features = {feature for id_ in alike for _, feature, _ in expected.get(id_, [])}
    found = whole.promoting(text)
    assert {one.summary.feature for one in found} == features
    assert [one.stands_out for one in found] == sorted((one.stands_out for one in found), reverse=True)
    assert whole.promoting("no such word at all") == []
    assert whole.promoting(10**30) == whole.promoting(-5) == []


def test_a_pass_that_is_stopped_goes_on_to_the_same_bytes_and_measures_once(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], whole: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "compose", stop)
        with pytest.raises(KeyboardInterrupt):
            describe(model, sae, corpora[0], to=tmp_path / "stopped", config=WITH)
        (tmp_path / "stopped.partial" / ".effect-1.res.gemscope").mkdir()  # as one that is killed leaves it
    monkeypatch.setattr(run, "measure", stop)
    again = describe(model, sae, corpora[0], to=tmp_path / "stopped", config=WITH)
    assert content(again.folder) == content(whole.folder)


def test_saes_of_one_site_share_one(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], whole: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(model: LanguageModel, site: object, *given: object, **options: object) -> Effect:
        asked.append(str(site))
        return effect(model, site, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "measure", counted)
    other, elsewhere = planted_sae(site="1.res", seed=9).sae, planted_sae(site="0.res", seed=2).sae
    made = describe(model, [sae, other, elsewhere], corpora[0], to=tmp_path / "three", config=WITH)
    assert asked == ["1.res", "0.res"]
    assert content(made[0].folder) == content(whole.folder)
    assert made[1].manifest.effect == whole.manifest.effect != made[2].manifest.effect


def test_one_that_is_given_is_kept_as_it_is(
    model: LanguageModel,
    sae: SAE,
    corpora: list[Corpus],
    measured: Effect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "measure", None)
    made = describe(model, sae, corpora[1], to=tmp_path / "given", config=WITH, effect=measured)
    assert Effect.load(made.folder / EFFECT).digest == measured.digest
    assert made[3].writes is not None
    with pytest.raises(Mismatch, match=r"writes at 1\.res, this effect is that of 0\.res"):
        describe(
            model,
            sae,
            corpora[1],
            to=tmp_path / "other",
            effect=effect(model, "0.res", corpora[0], tokens=24, length=12),
        )
    assert not (tmp_path / "other.partial").exists()


def test_where_there_is_none_it_is_said_why(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    assert atlas.manifest.no_effect == "none was asked for"
    assert not (atlas.folder / EFFECT).exists()
    assert atlas[3].writes is None
    assert atlas[3].to_dict()["effect"] is None
    assert atlas.promoting("the") == []
    store = harvest(model, corpora[0], ["1.res"], to=tmp_path / "store", length=CONFIG.length)
    stored = describe(model, sae, store, to=tmp_path / "stored", config=WITH)
    assert stored.manifest.no_effect == "the atlas was made of a harvest, and no text was read"
    aside = replace_site(sae, "1.transcoder_nogain")
    made = describe(model, aside, corpora[0], to=tmp_path / "aside", config=WITH)
    assert "computed on the side" in (made.manifest.no_effect or "")
    assert verify(made.folder) == []


def test_a_model_that_gives_no_gradient_does_not_cost_the_atlas(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::packed is not implemented\nand more")

    monkeypatch.setattr(run, "measure", refuse)
    made = describe(model, sae, corpora[0], to=tmp_path / "made", config=WITH)
    said = "the model gave no gradient: derivative for aten::packed is not implemented"
    assert made.manifest.no_effect == said
    assert made[3] == atlas[3]


def replace_site(sae: SAE, site: str) -> SAE:
    other = planted_sae(site=site, seed=3).sae
    assert other.d_sae == sae.d_sae
    return other


# --- put in later ---------------------------------------------------------------------------------------------------


def test_an_atlas_of_before_is_read_as_it_is_and_gets_one_without_its_text_being_read(
    model: LanguageModel, sae: SAE, whole: Atlas, atlas: Atlas, measured: Effect, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(atlas.folder, tmp_path / "old"))
    older(folder)
    before = content(folder)
    with Atlas(folder) as old:
        assert old.manifest.format == 3
        assert old[3] == replace(atlas[3])
        assert old.promoting("the") == []
        assert old.meanings([3]) == atlas.meanings([3])
    assert verify(folder) == []
    assert content(folder) == before
    added = add_effect(folder, model, sae, measured, k=4)
    assert added.manifest.format == 4
    assert added.manifest.effect == whole.manifest.effect
    for feature in range(len(added)):
        assert added[feature] == whole[feature]
    assert verify(folder) == []
    assert Effect.load(folder / EFFECT).digest == measured.digest
    twice = add_effect(added, model, sae, measured, k=2)
    assert len(twice[3].writes.promoted) == 2  # type: ignore[union-attr]
    assert verify(folder) == []
    with pytest.raises(Mismatch, match="give that SAE"):
        add_effect(folder, model, planted_sae(site="1.res", seed=8).sae, measured)


def test_an_atlas_of_before_can_be_read_where_nothing_can_be_written(planted: Atlas, reachable: Path) -> None:
    change_sql(reachable, *OLDER)
    with contextlib.closing(sqlite3.connect(reachable / "atlas.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    change_json(reachable, format=3)
    expected = planted[3]
    with powerless(reachable), Atlas(reachable) as old:
        assert old[3] == expected


# --- merging --------------------------------------------------------------------------------------------------------


def test_merged_atlases_have_the_mean_of_their_effects(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], whole: Atlas, tmp_path: Path
) -> None:
    other = describe(model, sae, corpora[1], to=tmp_path / "other", config=WITH)
    merged = merge([whole, other], to=tmp_path / "merged")
    kept, first, second = (Effect.load(one.folder / EFFECT) for one in (merged, whole, other))
    for half in (0, 1):
        a, b = first.of.halves[half], second.of.halves[half]
        assert kept.of.halves[half] == a + b
        mean = (a * first.later[half].double() + b * second.later[half].double()) / (a + b)
        assert kept.later[half].numpy() == pytest.approx(mean.numpy(), abs=1e-6)
    assert merged.manifest.effect is not None
    assert merged.manifest.effect.tokens == first.of.tokens + second.of.tokens
    assert merged[3].writes is None
    assert "gemscope atlas effect" in (merged.manifest.no_effect or "")
    read = add_effect(merged, model, sae, kept, k=4)
    assert read[3].writes is not None
    assert read.manifest.no_effect is None


def test_atlases_with_one_effect_merge_to_the_bytes_of_one_pass_with_it(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], measured: Effect, tmp_path: Path
) -> None:
    parts = [
        describe(model, sae, corpus, to=tmp_path / f"part-{number}", config=WITH, effect=measured)
        for number, corpus in enumerate(corpora[:2])
    ]
    once = describe(model, sae, corpora[:2], to=tmp_path / "once", config=WITH, effect=measured)
    assert content(merge(parts, to=tmp_path / "merged").folder) == content(once.folder)


def test_one_without_an_effect_leaves_the_merged_atlas_without(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    other = describe(model, sae, corpora[1], to=tmp_path / "other", config=WITH)
    merged = merge([other, atlas], to=tmp_path / "merged")
    assert merged.manifest.effect is None
    assert "one of the atlases that were merged has none: none was asked for" in (merged.manifest.no_effect or "")
    assert not (merged.folder / EFFECT).exists()
    assert verify(merged.folder) == []


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE written SET packed = x'00' WHERE id = 3", "feature 3, what it promotes"),
        ("DELETE FROM written WHERE id % 2 = 1", "not those that do"),
        ("DELETE FROM token_written WHERE token = (SELECT min(token) FROM token_written)", "though some do"),
        ("UPDATE written SET id = 900 WHERE id = 63", "feature 900, of 64"),
    ],
)
def test_damage_is_found(whole: Atlas, tmp_path: Path, statement: str, said: str) -> None:
    import shutil

    folder = Path(shutil.copytree(whole.folder, tmp_path / "damaged"))
    change_sql(folder, statement)
    assert any(said in problem for problem in verify(folder))


def test_a_damaged_record_is_one_line(whole: Atlas, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(whole.folder, tmp_path / "damaged"))
    change_sql(folder, "UPDATE written SET packed = x'00112233' WHERE id = 3")
    with Atlas(folder) as damaged, pytest.raises(CorruptFile, match=r"feature 3: .*copy it again, or describe anew"):
        damaged[3]
