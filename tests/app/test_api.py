"""Neuronpedia's calls, and the description of all there are."""

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemscope.app import openapi
from gemscope.app.api import CALLS
from gemscope.reports.look import look
from served import MODEL, SAE, TEXT

PLACE = {"modelId": "tiny-model", "source": "1-res-tiny"}


def test_activation_new_answers_as_neuronpedia_does(live: TestClient) -> None:
    feature = {**PLACE, "index": "5"}
    one = live.post("/api/activation/new", json={"feature": feature, "customText": TEXT}).json()
    assert len(one["tokens"]) == len(one["values"])
    assert one["maxValue"] == one["values"][one["maxValueTokenIndex"]] == max(one["values"])
    several = live.post("/api/activation/new", json={"feature": feature, "customText": [TEXT, "sun"]}).json()
    assert several[0] == one
    assert len(several) == 2
    whole = live.post("/api/activation/new", json={"feature": feature, "customText": TEXT, "ignoreBos": False}).json()
    assert one["values"][0] == 0
    assert whole["values"][1:] == one["values"][1:]
    layer = {"modelId": "tiny-model", "layer": "1-res-tiny", "index": 5}
    assert live.post("/api/activation/new", json={"feature": layer, "customText": TEXT}).json() == one


def test_activation_source_gives_every_active_feature(live: TestClient) -> None:
    found = live.post("/api/activation/source", json={**PLACE, "customText": [TEXT]}).json()["results"]
    acts = MODEL.capture(TEXT, ["1.res"])["1.res"]
    active = SAE.encode(acts)
    counted = acts.counted[0].tolist()
    total = sum(int(count) for count, here_ in zip(active.l0[0].tolist(), counted, strict=True) if here_)
    assert sum(map(len, found[0]["activeFeatures"].values())) == total
    for feature, cells in found[0]["activeFeatures"].items():
        values = active.of(int(feature))[0].tolist()
        assert cells == [[at, value] for at, value in enumerate(values) if value and counted[at]]


def test_more_activations_than_an_answer_holds_are_refused(live: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"modelId": "tiny-model", "source": "1-res-tiny", "customText": ["the end and the river"] * 2}
    answer = live.post("/api/activation/source", json=asked)
    assert answer.status_code == 200, answer.text
    monkeypatch.setattr("gemscope.app.api.CELLS", 3)
    answer = live.post("/api/activation/source", json=asked)
    assert answer.status_code == 400
    assert "more than 3 activations: send less text" in answer.json()["error"]


def test_search_all_ranks_features_over_the_text_or_over_chosen_tokens(live: TestClient) -> None:
    body = {"modelId": "tiny-model", "sourceSet": "res-tiny", "selectedLayers": [], "text": TEXT, "numResults": 5}
    found = live.post("/api/search-all", json=body).json()
    assert len(found["result"]) == 5
    for one in found["result"]:
        assert one["maxValue"] == max(one["values"]) == one["values"][one["maxValueIndex"]]
        assert one["layer"] == one["neuron"]["layer"] == "1-res-tiny"
    chosen = live.post("/api/search-all", json={**body, "sortIndexes": [4]}).json()
    assert {one["maxValueIndex"] for one in chosen["result"]} == {4}
    assert chosen["sortIndexes"] == [4]
    rare = live.post("/api/search-all", json={**body, "densityThreshold": 0.05, "numResults": 100}).json()
    assert 0 < len(rare["result"]) < 64
    assert all(one["neuron"]["frac_nonzero"] <= 0.05 for one in rare["result"])
    assert live.post("/api/search-all", json={**body, "selectedLayers": ["9-none"]}).status_code == 400


def test_search_topk_by_token_agrees_with_the_prompt_view(live: TestClient) -> None:
    body = {**PLACE, "text": TEXT, "numResults": 4, "densityThreshold": -1}
    found = live.post("/api/search-topk-by-token", json=body).json()
    seen = look(MODEL, SAE, TEXT, k=4)
    assert [one["token"] for one in found["results"]] == [one.token for one in seen.tokens]
    for one, token in zip(found["results"], seen.tokens, strict=True):
        assert one["isSpecial"] is not token.counted
        features = [pair["featureIndex"] for pair in one["topFeatures"]]
        assert features == ([fired.feature for fired in token.features] if token.counted else [])
    labels = [pair["feature"]["explanations"] for one in found["results"] for pair in one["topFeatures"]]
    assert any(labels)


def test_explanation_search_gives_twenty_at_a_time(live: TestClient) -> None:
    body = {"modelId": "tiny-model", "layers": ["1-res-tiny"], "query": "words like it", "offset": 0}
    first = live.post("/api/explanation/search", json=body).json()
    assert first["resultsCount"] == len(first["results"]) == 20
    assert first["hasMore"]
    second = live.post("/api/explanation/search", json={**body, "offset": first["nextOffset"]}).json()
    assert not second["hasMore"]
    indices = [one["index"] for one in first["results"] + second["results"]]
    assert len(set(indices)) == len(indices) == 21
    assert live.post("/api/explanation/search", json={**body, "query": "ab"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/activation/new", {}, 'field "customText" is missing'),
        ("/api/activation/new", {"feature": 5, "customText": "a"}, 'field "feature" is 5, expected an object'),
        ("/api/activation/new", {"feature": {**PLACE, "index": 99}, "customText": "a"}, "no feature 99"),
        ("/api/activation/new", {"feature": {**PLACE, "index": "٣"}, "customText": "a"}, "expected a whole number"),
        (
            "/api/activation/new",
            {"feature": {"modelId": "tiny-model", "index": 1}, "customText": "a"},
            "source is missing",
        ),
        (
            "/api/activation/source",
            {**PLACE, "customText": ["a"] * 5},
            "length 5, expected text of 1 to 1,000,000 characters or a list of 1 to 4",
        ),
        (
            "/api/activation/source",
            {**PLACE, "customText": "a" * 1_000_001},
            "length 1,000,001, expected text of 1 to 1,000,000 characters or a list of 1 to 4",
        ),
        ("/api/activation/source", {"modelId": "x", "source": "y", "customText": "a"}, "no atlas 'y'"),
        ("/api/search-all", {"modelId": "none", "text": "a"}, "no atlas of a model 'none'"),
        ("/api/search-all", {"modelId": "tiny-model", "text": "a", "numResults": 101}, "from 1 to 100"),
        ("/api/search-all", {"modelId": "tiny-model", "text": "a", "densityThreshold": "nan"}, "expected a number"),
        ("/api/search-all", {"modelId": "tiny-model", "text": "a", "sortIndexes": [10**30]}, "from 0"),
        ("/api/search-topk-by-token", {**PLACE, "text": "a", "ignoreBos": "maybe"}, "true or false"),
    ],
)
def test_a_call_that_cannot_be_read_is_told_what_was_expected(
    live: TestClient, path: str, body: Any, said: str
) -> None:
    answer = live.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]


def test_the_description_of_the_api_is_the_api(live: TestClient) -> None:
    found = live.get("/api/openapi.json").json()
    assert found == json.loads(json.dumps(openapi.describe(CALLS)))
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            names = {one["name"] for one in operation["parameters"]}
            assert names == set(re.findall(r"{(\w+)}", path))
            body = operation.get("requestBody", {"content": {"application/json": {"schema": {"$ref": ""}}}})
            name = body["content"]["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
            needed = found["components"]["schemas"].get(name, {}).get("required", [])
            answer = live.request(method, path.format(model="tiny-model", source="1-res-tiny", index=3), json={})
            assert answer.status_code == (400 if needed else 200)
            if needed:
                assert answer.json()["error"] == f'the request: field "{needed[0]}" is missing'
