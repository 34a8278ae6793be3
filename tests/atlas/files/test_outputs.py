"""Output scores beside an atlas: kept as they were measured, by any number of processes, and none of another effect's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atlases import change_json, with_effect
from gemscope.atlas.files.whole import OUTPUTS, own
from gemscope.atlas.output import Outcome, OutputScore
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.edits.strength import Strength
from gemscope.errors import AccessError, CorruptFile, NotFound


def made_up(atlas: Atlas, feature: int, *, examples: bool = True, mass: float = 0.25) -> OutputScore:
    """With figures that no float32 holds."""

    def outcome(ids: tuple[int, ...], times: float) -> dict[str, object]:
        figures = ("score", "rank", "probability", "mass", "unedited", "control")
        told = {name: times * mass / (3 + place) for place, name in enumerate(figures)}
        return {"ids": ids, "tokens": tuple(atlas.token(one) for one in ids), **told}

    return OutputScore(
        feature=feature,
        strength=Strength(5.3, 1.0, None),
        prompts=("I think that", "This is the"),
        measured=Outcome(**outcome((7,), 0.1)) if examples else None,  # type: ignore[arg-type]
        examples=Outcome(**outcome((4, 12), 0.3)) if examples else None,  # type: ignore[arg-type]
        **outcome((3, 9, 1), 1.0),  # type: ignore[arg-type]
    )


def test_what_was_measured_is_there_again_and_on_the_page(copy: Path) -> None:
    with Atlas(copy) as atlas:
        scores = [made_up(atlas, 12), made_up(atlas, 3, examples=False)]
        atlas.keep_outputs(scores)
        assert [atlas[one.feature].output for one in scores] == scores
        assert atlas[5].output is None
        assert atlas.outputs([3, 5]) == {3: scores[1]}
    with Atlas(copy) as again:
        assert again.outputs() == {3: scores[1], 12: scores[0]}
        told = json.loads(json.dumps(again[12].to_dict(), allow_nan=False))
        assert told["output"] == json.loads(json.dumps(scores[0].to_dict()))
    assert verify(copy) == []
    assert OUTPUTS in own(one.name for one in copy.iterdir())
    assert (copy / OUTPUTS).stat().st_mode == (copy / "corpus.npy").stat().st_mode


def test_two_who_have_it_open_keep_what_either_measures(copy: Path) -> None:
    with Atlas(copy) as one, Atlas(copy) as other:
        one.keep_outputs([made_up(one, 3)])
        assert other[3].output == made_up(other, 3)
        other.keep_outputs([made_up(other, 4), made_up(other, 3, mass=0.5)])
        assert one.outputs() == {3: made_up(one, 3, mass=0.5), 4: made_up(one, 4)}


def test_an_atlas_with_another_effect_or_sae_has_none(planted: Atlas, copy: Path, tmp_path: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.keep_outputs([made_up(atlas, 3)])
    change_json(copy, sae_digest="9" * 64)
    with Atlas(copy) as atlas:
        assert atlas[3].output is None
        atlas.keep_outputs([made_up(atlas, 4)])
        assert set(atlas.outputs()) == {4}
    with with_effect(planted, tmp_path / "with-effect") as atlas:
        atlas.keep_outputs([made_up(atlas, 3)])
        assert set(atlas.outputs()) == {3}
    manifest = json.loads((tmp_path / "with-effect" / "manifest.json").read_text())
    change_json(tmp_path / "with-effect", effect={**manifest["effect"], "digest": "another"})
    with Atlas(tmp_path / "with-effect") as atlas:
        assert atlas.outputs() == {}


def test_a_feature_that_there_is_not_and_a_folder_of_others_are_refused(
    planted: Atlas, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Atlas(copy) as atlas:
        with pytest.raises(NotFound, match="no feature 99999"):
            atlas.keep_outputs([made_up(atlas, 99999)])
        monkeypatch.setattr("gemscope.atlas.reader.writable", lambda _: False)
        with pytest.raises(AccessError, match="copy the atlas elsewhere to keep scores there"):
            atlas.keep_outputs([made_up(atlas, 3)])
    assert not (copy / OUTPUTS).exists()


def _torn(data: bytearray) -> None:
    data[-3] ^= 0x40


def _short(data: bytearray) -> None:
    del data[-8:]


@pytest.mark.parametrize("damage", [_torn, _short])
def test_damage_is_told_by_verify_and_on_reading(copy: Path, damage: Callable[[bytearray], None]) -> None:
    with Atlas(copy) as atlas:
        atlas.keep_outputs([made_up(atlas, 3)])
    data = bytearray((copy / OUTPUTS).read_bytes())
    damage(data)
    (copy / OUTPUTS).write_bytes(data)
    assert len(verify(copy)) == 1
    with Atlas(copy) as atlas, pytest.raises(CorruptFile):
        _ = atlas[3]
