"""Causes of a prediction, and what a feature's direction does to the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemscope.atlas.reader import Atlas
from gemscope.atlas.units import units_of
from gemscope.reports.attribute import attribute
from gemscope.reports.output_score import output_score
from served import AT, HOSTILE, MODEL, SAE, TEXT, as_json


def test_the_causes_of_a_prediction_are_what_attribute_finds(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/attribute.json", params={"text": TEXT, "k": 5}).json()
    expected = as_json(attribute(MODEL, SAE, TEXT, k=5, atlas=folder).to_dict())
    assert {name: found[name] for name in expected} == expected
    assert len(found["rows"]) == 5
    assert all(row["measured"] is not None for row in found["rows"])
    with Atlas(folder) as atlas:
        labels = atlas.labels({row["feature"] for row in found["rows"]})
    assert found["labels"] == {str(index): label for index, label in labels.items()}
    earlier = live.get(f"{AT}/attribute.json", params={"text": TEXT, "position": 2, "target": "a"}).json()
    assert earlier["position"] == 2
    assert earlier["target"]["token"] == "a"
    by_id = live.get(f"{AT}/attribute.json", params={"text": TEXT, "target": f"id:{earlier['target']['id']}"}).json()
    assert by_id["target"]["token"] == "a"  # as in the shell
    wrong = live.get(f"{AT}/attribute.json", params={"text": TEXT, "target": "id:99999"})
    assert (wrong.status_code, "no token 99999" in wrong.json()["error"]) == (400, True)


def test_the_panel_of_causes_is_a_part_of_the_prompt_view_and_a_page(live: TestClient) -> None:
    prompt = live.get(f"{AT}/prompt", params={"text": TEXT}).text
    assert 'id="causes"' in prompt
    places = re.findall(r'form="why" name="position" value="([0-9]+)"', prompt)
    tokens = live.get(f"{AT}/prompt.json", params={"text": TEXT}).json()["tokens"]
    assert [*map(int, places)] == [*range(len(tokens))]
    asked = {"text": TEXT, "position": places[3]}
    part = live.post(f"{AT}/attribute", data=asked, headers={"hx-request": "true"}).text
    assert "<html" not in part
    page = live.post(f"{AT}/attribute", data=asked).text
    assert page.startswith("<!doctype html>")
    assert "<caption>" in part
    assert 'value="3" selected' in part
    data = live.get(f"{AT}/attribute.json", params=asked).json()
    assert f'href="{AT}/{data["rows"][0]["feature"]}"' in part
    hostile = live.get(f"{AT}/attribute", params={"text": HOSTILE, "target": "a"}).text
    assert "<script>alert" not in hostile


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"position": 99}, "99"),
        ({"position": "x"}, "expected a whole number"),
        ({"target": "two words"}, "tokens"),
        ({"k": 0}, "from 1 to 50"),
        ({"text": "a" * 10_001}, "a text of 10001 tokens does not fit"),
        ({"text": "a b " * 80}, "reads up to 128"),
    ],
)
def test_causes_that_cannot_be_found_are_one_line(live: TestClient, asked: dict[str, Any], said: str) -> None:
    answer = live.get(f"{AT}/attribute.json", params={"text": TEXT, **asked})
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert live.get(f"{AT}/attribute", params={"text": TEXT, **asked}).status_code == 400


def test_the_output_score_is_the_library_s_and_is_measured_once(live: TestClient, folder: Path) -> None:
    (source,) = live.app.state.shelf  # type: ignore[attr-defined]
    found = live.get(f"{AT}/12/output-score.json").json()
    with Atlas(folder) as atlas:
        units, one = units_of(atlas, MODEL, SAE), atlas[12]
    promoted, examples = [logit.id for logit in one.promoted[:10]], [each.ids[each.peak] for each in one.strongest]
    expected = output_score(MODEL, SAE, 12, promoted=promoted, examples=examples, strength=units.max(12)).to_dict()
    for one in (expected, expected["examples"]):  # tokens as the atlas writes them, whose vocabulary is made up
        name = "promoted" if one is expected else "tokens"
        one[name] = found[name] if one is expected else found["examples"][name]  # type: ignore[index]
    assert found == {"feature": 12, "why": "", **as_json(expected)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source.live, "output_score", lambda *_: pytest.fail("it was measured again"))
        assert live.get(f"{AT}/12/output-score.json").json() == found
    part = live.get(f"{AT}/12/output-score", headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert "Output score" in part
    assert "12" in live.get(f"{AT}/12/output-score").text
    assert "Output score" in live.get(f"{AT}/12").text  # known by now
    assert f'hx-get="{AT}/9/output-score"' in live.get(f"{AT}/9").text


def test_a_feature_that_never_fired_has_no_output_score(live: TestClient) -> None:
    assert "it fired nowhere" in live.get(f"{AT}/6/output-score.json").json()["why"]
    assert "output-score" not in live.get(f"{AT}/6").text
    assert live.get(f"{AT}/99/output-score.json").status_code == 404
