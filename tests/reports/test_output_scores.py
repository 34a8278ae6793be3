"""Output scores of many features: those of one at a time, kept with the atlas and never measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gemscope as gs
from atlases import with_effect
from gemscope.atlas.output import Outcome, OutputScore
from gemscope.atlas.units import units_of
from gemscope.reports import output_scores
from gemscope.reports.output_score import output_score_of
from gemscope.testing import planted_sae
from served import MODEL, SAE, planted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return planted(tmp_path / "planted.atlas")


def in_words_of(atlas: gs.Atlas, score: OutputScore) -> OutputScore:
    """Tokens as the atlas writes them, whose vocabulary is made up here."""

    def told(one: Outcome) -> Any:
        return replace(one, tokens=tuple(map(atlas.token, one.ids)))

    return replace(
        told(score), **{name: told(one) for name in ("measured", "examples") if (one := getattr(score, name))}
    )


def test_each_is_that_of_the_feature_alone_and_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gs.add_output_scores(folder, MODEL, SAE, features=[12, 5]) == 2
    with gs.Atlas(folder) as atlas:
        units = units_of(atlas, MODEL, SAE)
        for one in (5, 12):
            alone = output_score_of(MODEL, SAE, atlas[one], strength=units.max(one))
            assert atlas[one].output == in_words_of(atlas, alone)
    measured: list[int] = []
    real = output_scores.output_score_of

    def counted(*given: object, **options: object) -> object:
        measured.append(given[2].index)  # type: ignore[attr-defined]
        return real(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(output_scores, "output_score_of", counted)
    assert gs.add_output_scores(folder, MODEL, SAE, features=[12, 9, 5, 9]) == 1
    assert measured == [9]


def test_stopped_it_has_kept_what_it_had_and_goes_on_with_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_scores, "_AT_ONCE", 2)
    real, left = output_scores.output_score_of, [3]

    def stopped(*given: object, **options: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(output_scores, "output_score_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        gs.add_output_scores(folder, MODEL, SAE, features=[1, 2, 3, 4])
    with gs.Atlas(folder) as atlas:
        assert set(atlas.outputs()) == {1, 2}
    left[0] = 2
    assert gs.add_output_scores(folder, MODEL, SAE, features=[1, 2, 3, 4]) == 2


def test_without_features_it_is_those_that_are_told_to_promote_something(folder: Path, tmp_path: Path) -> None:
    with gs.Atlas(folder) as bare, with_effect(bare, tmp_path / "with-effect") as atlas:
        told = {one.feature for one in atlas.summaries(dead=False, limit=len(atlas)) if one.promotes}
        assert told
        gs.add_output_scores(atlas, MODEL, SAE)
        assert set(atlas.outputs()) == told


def test_what_cannot_be_is_one_line(folder: Path) -> None:
    with pytest.raises(gs.errors.InputError, match="feature 6 fired nowhere"):
        gs.add_output_scores(folder, MODEL, SAE, features=[6])
    with pytest.raises(gs.errors.NotFound, match="no feature 999"):
        gs.add_output_scores(folder, MODEL, SAE, features=[999])
    with pytest.raises(gs.errors.Mismatch, match="give that SAE"):
        gs.add_output_scores(folder, MODEL, planted_sae(seed=3).sae, features=[1])
