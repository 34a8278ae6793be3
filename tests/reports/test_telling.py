"""What `look` says where an atlas is at hand: features by what is telling, with their labels."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest

import gemscope as gs
from atlases import change_sql, planted_atlas
from gemscope.activations.model import LanguageModel
from gemscope.atlas.bundled import BUNDLED
from gemscope.cli.main import main
from gemscope.errors import InputError, Mismatch
from served import MODEL, SAE, TEXT, planted


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> gs.Atlas:
    return gs.Atlas(planted(tmp_path_factory.mktemp("atlases") / "atlas"))


def right(page: gs.Dashboard) -> float:
    """How far its label is right."""
    if not page.explanations:
        return 0.5
    best = page.explanations[0]
    return best.score if best.score is not None else (1 + (0.7 if best.confidence is None else best.confidence)) / 2


def test_features_come_by_share_of_their_maximum_times_rarity_times_how_far_the_label_is_right(atlas: gs.Atlas) -> None:
    every = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, order="activation")
    seen = gs.look(MODEL, SAE, TEXT, k=4, atlas=atlas)
    assert (every.order, seen.order) == ("activation", "telling")
    pages = {page.index: page for page in atlas}

    def telling(feature: int, activation: float) -> float:
        page = pages[feature]
        return 0.0 if page.dead else activation / page.max * math.log(1 / page.density) * right(page)

    for token, whole in zip(seen.tokens, every.tokens, strict=True):
        best = sorted((telling(one.feature, one.activation) for one in whole.features), reverse=True)[:4]
        assert [telling(one.feature, one.activation) for one in token.features] == pytest.approx(best)
        assert token.l0 == whole.l0 == len(whole.features)
        for one in token.features:
            assert one.label == pages[one.feature].label
            page = pages[one.feature]
            assert one.share == (None if page.dead else pytest.approx(one.activation / page.max))


def test_what_stands_out_is_each_feature_once_where_it_says_most(atlas: gs.Atlas) -> None:
    seen = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, foremost=SAE.d_sae)
    assert len({one.feature for one in seen.foremost}) == len(seen.foremost) > 0
    firing = {one.feature for token in seen.tokens if token.counted for one in token.features}
    assert {one.feature for one in seen.foremost} == firing
    assert seen.firing == len(firing)
    for one in seen.foremost:
        token = seen.tokens[one.position]
        assert token.counted
        assert one.activation == max(
            other.activation
            for at in seen.tokens
            if at.counted
            for other in at.features
            if other.feature == one.feature
        )
    assert json.loads(json.dumps(seen.to_dict()))["foremost"][0]["label"] == seen.foremost[0].label
    # However few features of each token are shown.
    assert gs.look(MODEL, SAE, TEXT, k=1, atlas=atlas, foremost=9).foremost == seen.foremost[:9]


def test_without_an_atlas_the_strongest_come_and_nothing_is_named() -> None:
    seen = gs.look(MODEL, SAE, TEXT, k=4)
    assert seen.order == "activation"
    assert not seen.foremost
    assert all(one.label is None and one.share is None for token in seen.tokens for one in token.features)
    with pytest.raises(InputError, match=r"no atlas of .* is at hand"):
        gs.look(MODEL, SAE, TEXT, order="telling")


def test_a_better_label_comes_before_a_worse_one(tmp_path: Path) -> None:
    with gs.Atlas(planted(tmp_path / "atlas", labelled=0)) as atlas:
        bare = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, foremost=SAE.d_sae).foremost
        first, second = (one.feature for one in bare[:2])
        tells = {one.feature: one.share * -math.log(atlas[one.feature].density) for one in bare[:2] if one.share}
        ratio = tells[second] / tells[first]
        scores = {first: 0.51, second: min(1.0, 0.52 / ratio)}
        for feature in scores:
            atlas.explain(feature, "words", method="tried")
        assert atlas.right()[[first, second]] == pytest.approx([0.85, 0.85])
        for feature, score in scores.items():
            scored = f"UPDATE explanation SET score = {score} WHERE feature = {feature}"
            change_sql(atlas.folder, scored, "UPDATE relabelled SET times = times + 1")
        assert atlas.right()[[first, second]] == pytest.approx([*scores.values()])
        named = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, foremost=2).foremost
        assert [one.feature for one in named] == ([second, first] if scores[second] * ratio > 0.51 else [first, second])
        assert (atlas.right() == 0.5).sum() == SAE.d_sae - 2


def test_what_never_fired_in_the_atlas_comes_last_and_has_no_share(atlas: gs.Atlas) -> None:
    seen = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas)
    dead = [[atlas[one.feature].dead for one in token.features] for token in seen.tokens]
    assert sum(map(sum, dead)) > 0
    assert all(row == sorted(row) for row in dead)
    shown = next(one for token in seen.tokens for one in token.features if one.share is None)
    assert f"{shown.feature}  " in str(seen)
    assert json.loads(json.dumps(seen.to_dict(), allow_nan=False))


def test_dense_features_can_be_left_out(atlas: gs.Atlas) -> None:
    densities = {page.index: page.density for page in atlas}
    bound = sorted(densities.values())[len(densities) // 2]
    seen = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, max_density=bound)
    found = {one.feature for token in seen.tokens for one in token.features}
    assert found
    assert all(densities[feature] <= bound for feature in found)


def test_another_sae_s_atlas_is_refused(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "other").close()
    with pytest.raises(Mismatch, match="its labels are of other features"):
        gs.look(MODEL, SAE, TEXT, atlas=tmp_path / "other")


def test_the_illness_of_a_prompt_is_among_the_first_five(bundled_model: LanguageModel) -> None:
    seen = gs.look(bundled_model, gs.load_sae("smollm2"), "The patient was given medicine for the fever")
    about = [
        one.label
        for token in seen.tokens
        for one in token.features
        if token.token in (" medicine", " fever") and one.label and re.search("illness|medicine|medical", one.label)
    ]
    assert len(about) >= 2
    assert any(re.search("illness|medical", one.label or "") for one in seen.foremost[:5])


@pytest.mark.usefixtures("at_hand")
def test_the_shell_ends_with_meanings_and_leads_to_a_feature(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "Would you be able to travel through time?"]) == 0
    out = capsys.readouterr().out
    stands = out.split("What stands out")[1]
    assert re.search("[“`]through[”`]", stands)
    words = stands.split("Next: what is that feature?")[1].split()[:3]
    assert words[:2] == ["gemscope", "feature"]
    assert main(words[1:]) == 0
    assert f"feature {words[2]}" in capsys.readouterr().out


def test_features_are_found_by_label_and_by_token_from_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "money", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all("money" in one["label"] for one in found["labels"][:3])
    with gs.Atlas(BUNDLED) as atlas:
        on = {hit.summary.feature for id_, *_ in atlas.tokens_like("money", 4) for hit in atlas.by_token(id_)}
    assert {one["feature"] for one in found["tokens"]} <= on
    assert main(["search", "xqzzy"]) == 0
    assert "no feature has a label or a token like 'xqzzy'" in capsys.readouterr().out
    assert main(["feature", "99999999"]) == 1
    assert "no feature 99999999" in capsys.readouterr().err


def test_a_text_finds_the_features_that_say_most_about_it(
    atlas: gs.Atlas, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = gs.look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, foremost=SAE.d_sae)
    best: dict[int, float] = {}
    for token in every.tokens:
        for one in token.features if token.counted else ():
            page = atlas[one.feature]
            tells = 0.0 if page.dead else one.activation / page.max * -math.log(page.density) * right(page)
            best[one.feature] = max(best.get(one.feature, 0.0), tells)
    assert [best[one.feature] for one in every.foremost] == pytest.approx(sorted(best.values(), reverse=True))
    monkeypatch.setattr("gemscope.cli.options.model_of", lambda *_: MODEL)
    monkeypatch.setattr("gemscope.cli.options.sae_of", lambda *_: SAE)
    words = ["search", "tiny", "planted", "--text", TEXT, "--limit", "3", "--atlas", str(atlas.folder)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["features"] == [
        asdict(one) | {"token": every.tokens[one.position].token} for one in every.foremost[:3]
    ]
    first = every.foremost[0].feature
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(
        f"Next: what is that feature?  gemscope feature {first} --atlas {atlas.folder}\n"
    )
    assert main([*words[:-2]]) == 1
    assert "no atlas of planted-32-64 is at hand" in capsys.readouterr().err


@pytest.mark.usefixtures("at_hand")
def test_a_search_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["search"], ["search", "one", "--text", "x y"], ["search", "--text", "x y", "--limit", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "gemscope search: error: " in capsys.readouterr().err
    assert main(["search", "--text", "x"]) == 0
    assert capsys.readouterr().out.startswith("no token of that text counts")


def test_causes_are_named_too(atlas: gs.Atlas) -> None:
    plain = gs.attribute(MODEL, SAE, TEXT, k=6)
    named = gs.attribute(MODEL, SAE, TEXT, k=6, atlas=atlas)
    assert [one.feature for one in named.rows] == [one.feature for one in plain.rows]
    labels = atlas.labels(one.feature for one in (*named.rows, *named.by_feature))
    assert labels
    for one in (*named.rows, *named.by_feature):
        assert one.label == labels.get(one.feature)
    assert "what it stands for" in str(named)
    assert "what it stands for" not in str(plain)
    assert next(iter(labels.values()))[:20] in str(named)
