"""Steering as Neuronpedia asks for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from gemscope.edits.steer import Project, Steer
from gemscope.reports.steer import steer
from served import BASE, BODY, MODEL, PROMPT, SAE, STEER, here, planted, reader, told


def test_the_steer_call_answers_as_neuronpedia_does(live: TestClient) -> None:
    found = live.post("/api/steer", json=BODY).json()
    made = steer(MODEL, PROMPT, [Steer(SAE, 5, 8.0)], max_new_tokens=6, temperature=0.5, seed=16).pairs[0]
    names = {"STEERED", "DEFAULT", "steeredLogProbs", "defaultLogProbs", "id", "shareUrl", "limit"}
    assert set(found) == names
    assert found["STEERED"] == PROMPT + made.steered.text
    assert found["DEFAULT"] == PROMPT + made.default.text
    for said, theirs in (
        (found["steeredLogProbs"], made.steered.edited),
        (found["defaultLogProbs"], made.default.logprobs),
    ):
        assert [one["logprob"] for one in said] == list(theirs)
        for one in said:
            assert set(one) == {"token", "logprob", "topLogprobs"}
            top = [other["logprob"] for other in one["topLogprobs"]]
            assert top == sorted(top, reverse=True)
            assert len(top) == 10
            # The token that was written is as likely as the list says, if it is in it, and else less likely than all.
            if not one["token"].strip("\ufffd"):  # a piece of a character, which is no text by itself
                continue
            same = [other["logprob"] for other in one["topLogprobs"] if other["token"] == one["token"]]
            listed = any(math.isclose(other, one["logprob"], abs_tol=1e-3) for other in same)
            assert listed or one["logprob"] <= top[-1] + 1e-3
    assert live.post("/api/steer", json=BODY).json() == found  # same seed, same texts, same id
    other = live.post("/api/steer", json={**BODY, "seed": 17}).json()
    assert other["id"] != found["id"]


def test_the_link_to_share_shows_the_same(live: TestClient) -> None:
    found = live.post("/api/steer", json=BODY).json()
    assert found["shareUrl"].startswith(f"{BASE}{STEER}?")
    query = urlsplit(found["shareUrl"]).query
    (run,) = live.get(f"{STEER}.json?{query}&run=true").json()["runs"]
    assert PROMPT + run["pairs"][0]["steered"]["text"] == found["STEERED"]
    assert run["strengths"][0]["raw"] == pytest.approx(8.0, rel=1e-4)


def test_orthogonal_decomposition_scales_what_lies_along_the_feature(live: TestClient) -> None:
    body = {**BODY, "steer_method": "ORTHOGONAL_DECOMP", "strength_multiplier": 0.5, "temperature": 0}
    found = live.post("/api/steer", json=body).json()
    made = steer(MODEL, PROMPT, [Project(SAE, 5, 2.0)], max_new_tokens=6, temperature=0, seed=16).pairs[0]
    assert found["STEERED"] == PROMPT + made.steered.text
    assert [one["logprob"] for one in found["steeredLogProbs"]] == list(made.steered.edited)
    query = parse_qs(urlsplit(found["shareUrl"]).query)
    assert (query["how"], query["factor"]) == (["project"], ["2"])


def test_the_steer_call_streams_the_texts_so_far(live: TestClient) -> None:
    whole = live.post("/api/steer", json=BODY).json()
    found = [value for name, value in told(live.post("/api/steer", json={**BODY, "stream": True})) if not name]
    *frames, last = found
    assert last == {**whole, "id": last["id"]}
    for frame in frames:
        assert set(frame) == set(whole)
        assert frame["steeredLogProbs"] is None
        assert whole["STEERED"].startswith(frame["STEERED"])
        assert whole["DEFAULT"].startswith(frame["DEFAULT"])


def test_features_of_several_sources_steer_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        planted(tmp_path / name)
    with reader(tmp_path, models=here) as client:
        second = client.get("/index.json").json()["sources"][1]["id"]
        both = [*BODY["features"], {"modelId": "tiny-model", "layer": second, "index": 9, "strength": -3}]
        found = client.post("/api/steer", json={**BODY, "features": both}).json()
        edits = [Steer(SAE, 5, 8.0), Steer(SAE, 9, -6.0)]
        made = steer(MODEL, PROMPT, edits, max_new_tokens=6, temperature=0.5, seed=16).pairs[0]
        assert found["STEERED"] == PROMPT + made.steered.text
        assert found["shareUrl"] is None


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"prompt": "a" * 2049}, 400, "length 2,049, expected text of"),
        ({"prompt": ""}, 400, '"prompt" has length 0, expected text of 1'),
        ({"features": []}, 400, '"features" has length 0, expected a list of 1 to 20'),
        ({"features": BODY["features"] * 21}, 400, '"features" has length 21, expected a list of 1 to 20'),
        ({"features": 5}, 400, '"features" is 5, expected a list'),
        (
            {"features": [{**BODY["features"][0], "strength": "nan"}]},
            400,
            'strength" is "nan", expected a number from -1,000,000 to 1,000,000',
        ),
        (
            {"features": [{**BODY["features"][0], "strength": None}]},
            400,
            '"features[0].strength" is null, expected a number',
        ),
        ({"features": [{**BODY["features"][0], "index": 99}]}, 404, "no feature 99"),
        ({"features": [{**BODY["features"][0], "layer": "9-none"}]}, 404, "no atlas '9-none'"),
        ({"modelId": "another"}, 400, "modelId is 'another', but feature 5 is of 'tiny-model'"),
        ({"n_tokens": 0}, 400, "from 1 to 256"),
        ({"n_tokens": 257}, 400, "from 1 to 256"),
        ({"temperature": 2.1}, 400, "from 0 to 2"),
        ({"strength_multiplier": 11}, 400, "from 0 to 10"),
        ({"freq_penalty": 3}, 400, "from -2 to 2"),
        ({"seed": "x"}, 400, '"seed" is "x", expected a whole number'),
        ({"steer_method": "PROJECTION_CAP"}, 400, 'expected "ORTHOGONAL_DECOMP" or "SIMPLE_ADDITIVE"'),
    ],
)
def test_a_steer_call_that_cannot_be_answered_is_told_why(
    live: TestClient, change: dict[str, Any], status: int, said: str
) -> None:
    for stream in (False, True):
        answer = live.post("/api/steer", json={**BODY, **change, "stream": stream})
        assert answer.status_code == status
        assert said in answer.json()["error"]
