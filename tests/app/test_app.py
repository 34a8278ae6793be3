"""The server: what its pages and its data are, who may ask for them, and what it does with those who mean harm."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from atlases import HOSTILE_LABEL, planted_atlas
from gemscope.activations import hub
from gemscope.app import connection, openapi
from gemscope.app import server as server_module
from gemscope.app.api import CALLS
from gemscope.app.guard import Guard
from gemscope.app.nearby import Nearby
from gemscope.app.server import app, serve
from gemscope.app.shelf import shelf
from gemscope.app.worker import Worker
from gemscope.atlas.reader import Atlas
from gemscope.cli.main import main
from gemscope.errors import GemscopeError, HubUnreachable, InputError, NotFound
from gemscope.features.files.saelens import save_sae
from gemscope.reports.look import look
from served import AT, BASE, MODEL, SAE, TEXT, here, planted, reader, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("atlases") / "atlas")


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[TestClient]:
    with reader(folder, models=here) as client:
        yield client


@pytest.fixture(scope="module")
def still(folder: Path) -> Iterator[TestClient]:
    with reader(folder) as client:
        yield client


# --- pages and the data beside them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/tiny-model",
        AT,
        f"{AT}?order=max&descending=true&dead=false&text=sea&limit=5&offset=1&min_density=&max_max=1e9",
        f"{AT}/0",
        f"{AT}/6",
        f"{AT}/63?embed=true&embedplots=false&height=300",
        f"{AT}/search",
        f"{AT}/search?text=sea",
        f"{AT}/search?kind=token&text=sea",
        f"{AT}/search?kind=text&text=the+cat",
        f"{AT}/prompt",
        f"{AT}/prompt?text=the+cat&pin=3",
        f"{AT}/steer",
        f"{AT}/steer?feature=3&strength=2max&prompt=the+cat&tokens=3&run=true",
        f"{AT}/attribute",
        f"{AT}/attribute?text=the+cat",
        f"{AT}/3/output-score",
    ],
)
def test_every_page_is_there_and_so_is_its_data(live: TestClient, path: str) -> None:
    page = live.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    where, _, query = path.partition("?")
    found = live.get(f"{where}.json?{query}")
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.json()


def test_a_link_on_a_page_leads_to_a_page(live: TestClient) -> None:
    seen: set[str] = set()
    waiting = ["/"]
    while waiting and len(seen) < 150:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = live.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            links = re.findall(r'(?:href|src)="(/[^"#]*)', answer.text)
            waiting += [link.replace("&amp;", "&") for link in links]
    assert any(path.startswith("/static/") for path in seen)
    assert f"{AT}/5" in seen


def test_a_browser_finds_an_icon_beside_answers_that_name_none(live: TestClient) -> None:
    answer = live.get("/favicon.ico")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.content == live.get("/static/gem.svg").content


def test_a_feature_s_data_is_the_dashboard_s_with_the_names_of_neuronpedia(live: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        expected = json.loads(json.dumps(atlas[3].to_dict()))
    assert live.get(f"{AT}/3.json").json() == expected
    assert live.get("/api/feature/tiny-model/1-res-tiny/3").json() == expected


def test_the_table_as_data_is_what_the_atlas_lists(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/browse.json?order=density&descending=true&dead=false&limit=7").json()
    with Atlas(folder) as atlas:
        listed = atlas.summaries(order="density", descending=True, dead=False, limit=7)
        assert found["total"] == atlas.count(dead=False)
    assert [one["index"] for one in found["features"]] == [str(one.feature) for one in listed]
    assert [one["frac_nonzero"] for one in found["features"]] == [one.density for one in listed]
    assert found == live.get(f"{AT}.json?order=density&descending=true&dead=false&limit=7").json()


def test_a_page_that_asks_for_a_part_of_itself_gets_that(live: TestClient) -> None:
    part = {"hx-request": "true"}
    for path in (AT, f"{AT}/search?text=sea", f"{AT}/prompt?text=the+cat"):
        found = live.get(path, headers=part)
        assert found.status_code == 200
        assert found.headers["vary"] == live.get(path).headers["vary"] == "hx-request"
        assert "<html" not in found.text
    missing = live.get(f"{AT}/prompt?text=x&k=0", headers=part)
    assert missing.status_code == 400
    assert "<html" not in missing.text
    assert "from 1 to 20" in missing.text


def test_labels_are_searched_everywhere_at_once(live: TestClient) -> None:
    found = live.get("/search.json?text=sea+and").json()["features"]
    assert [one["description"] for one in found] == ["sea and words like it"]
    assert found[0]["modelId"] == "tiny-model"


# --- reading texts ----------------------------------------------------------------------------------------------------


def test_a_text_of_one_s_own_is_tried_on_a_feature(live: TestClient) -> None:
    acts = MODEL.capture(TEXT, ["1.res"])["1.res"]
    expected = SAE.encode(acts, features=[5]).of(5)[0].tolist()
    assert max(expected) > 0
    found = live.post(f"{AT}/5/test", json={"text": TEXT})
    assert found.status_code == 200
    assert found.json()["values"] == expected
    assert found.json()["tokens"] == MODEL.strings(acts.tokens.ids[0].tolist())
    assert found.json()["counted"] == acts.counted[0].tolist()
    assert found.headers["x-queue-ahead"] == "0"
    part = live.post(f"{AT}/5/test", data={"text": TEXT}, headers={"hx-request": "true"})
    assert part.status_code == 200
    assert "token-strip" in part.text


def test_the_prompt_page_shows_what_look_sees(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/prompt.json", params={"text": TEXT, "k": 4, "pin": 5}).json()
    expected = json.loads(json.dumps(look(MODEL, SAE, TEXT, k=4).to_dict()))
    assert {name: found[name] for name in expected} == expected
    assert found["values"] == live.post(f"{AT}/5/test", json={"text": TEXT}).json()["values"]
    shown = {one["feature"] for token in found["tokens"] for one in token["features"]}
    with Atlas(folder) as atlas:
        assert found["labels"] == {str(index): label for index, label in atlas.labels({*shown, 5}).items()}
    assert found["labels"]
    assert live.post(f"{AT}/prompt.json", json={"text": TEXT, "k": 4, "pin": 5}).json() == found


def test_the_features_that_fire_on_a_text_are_found_strongest_first(live: TestClient) -> None:
    found = live.get(f"{AT}/search.json", params={"text": TEXT, "kind": "text"}).json()
    acts = MODEL.capture(TEXT, ["1.res"])["1.res"]
    dense = SAE.encode_dense(acts)[0] * acts.counted[0][:, None]
    expected = dense.amax(0).sort(descending=True).indices[: len(found["firing"])].tolist()
    assert [int(one["index"]) for one in found["firing"]] == expected
    peaks = [max(one["values"]) for one in found["firing"]]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] > 0


def test_a_model_s_refusal_is_one_line_and_400(live: TestClient) -> None:
    long = "a b c " * 200
    for answer in (
        live.post(f"{AT}/5/test", json={"text": long}),
        live.get(f"{AT}/prompt.json", params={"text": long}),
        live.post("/api/search-all", json={"modelId": "tiny-model", "text": long}),
    ):
        assert answer.status_code == 400
        assert "reads up to 128" in answer.json()["error"]
    page = live.get(f"{AT}/prompt", params={"text": long})
    assert page.status_code == 400
    assert "reads up to 128" in page.text


def test_without_a_model_pages_say_so_and_texts_are_refused(still: TestClient) -> None:
    assert still.get("/health").json()["sources"][0]["live"] == "off"
    assert still.get(f"{AT}/3").status_code == 200
    assert f"{AT}/3/test" not in still.get(f"{AT}/3").text
    assert "without a model" in still.get(f"{AT}/prompt").text
    assert "without a model" in still.get(f"{AT}/search.json?kind=text&text=a").json()["note"]
    answer = still.post(f"{AT}/3/test", json={"text": TEXT})
    assert answer.status_code == 503
    assert "without a model" in answer.json()["error"]


def test_another_sae_than_the_atlas_s_is_refused_with_the_reason(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "other", features=SAE.d_sae).close()
    with reader(tmp_path / "other", models=here) as client:
        state = client.get("/health").json()["sources"][0]
        assert state["live"] == "off"
        assert "not the SAE that this atlas was made with" in state["why"]
        assert client.post(f"{AT}/3/test", json={"text": TEXT}).status_code == 503


@pytest.mark.parametrize(
    ("error", "why"), [(HubUnreachable("not in\nthe cache"), "not in the cache"), (MemoryError(), "MemoryError")]
)
def test_a_model_that_cannot_be_had_is_a_reason_not_a_failure(folder: Path, error: Exception, why: str) -> None:
    def nowhere(_: Any) -> tuple[Any, Any]:
        raise error

    with reader(folder, models=nowhere) as client:
        assert why in client.get("/health").json()["sources"][0]["why"]
        assert client.get(f"{AT}/3").status_code == 200


def test_pages_are_there_while_the_model_is_loaded_and_texts_wait_for_it(folder: Path) -> None:
    loaded = threading.Event()

    def slowly(_: Any) -> tuple[Any, Any]:
        assert loaded.wait(120)
        return MODEL, SAE

    with reader(folder, models=slowly, wait=False) as client:
        assert client.get(f"{AT}/3").status_code == 200
        health = client.get("/health").json()
        assert health["sources"][0]["live"] == "loading"
        assert health["queue"]["running"]
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.post(f"{AT}/3/test", json={"text": TEXT})))
        asking.start()
        until(lambda: client.get("/health").json()["queue"]["waiting"] == 1)
        loaded.set()
        asking.join(120)
        assert answers[0].status_code == 200
        assert answers[0].headers["x-queue-ahead"] == "1"


def test_what_an_atlas_names_is_found_on_this_machine_and_nobody_else_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "reach", lambda: pytest.fail("the network was asked"))
    save_sae(SAE, tmp_path / "sae")
    MODEL.hf.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    MODEL.tokenizer.save_pretrained(tmp_path / "model")
    with Atlas(folder) as atlas:
        manifest = replace(atlas.manifest, model=str(tmp_path / "model"), sae=str(tmp_path / "sae"))
    find = Nearby()
    model, sae = find(manifest)
    assert sae.digest == SAE.digest
    assert model.n_layers == MODEL.n_layers
    assert find(manifest)[0] is model
    assert Nearby(MODEL, SAE)(manifest) == (MODEL, SAE)
    for wrong in ({"model": "nobody/nothing"}, {"sae": "nobody/nothing/at/all"}, {"sae": ""}, {"sae": "/no/such/sae"}):
        with pytest.raises(GemscopeError):
            find(replace(manifest, **wrong))  # type: ignore[arg-type]


def test_the_bundled_model_and_sae_are_found_by_the_names_that_an_atlas_of_them_has(folder: Path) -> None:
    with Atlas(folder) as atlas:
        manifest = replace(atlas.manifest, model="HuggingFaceTB/SmolLM2-135M-Instruct", sae="smollm2", site="15.res")
    model, sae = Nearby()(manifest)
    assert model.origin.startswith("the package")
    assert sae.info.name == "smollm2"


# --- the queue --------------------------------------------------------------------------------------------------------


def test_when_too_many_wait_the_next_reader_is_told_so(folder: Path) -> None:
    worker = Worker(room=1)
    with reader(folder, models=here, worker=worker) as client:
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy and not worker.waiting)
        worker.submit(lambda _: None)
        answer = client.post(f"{AT}/3/test", json={"text": TEXT})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert "wait to be read" in answer.json()["error"]
        assert client.get(f"{AT}/3").status_code == 200
        assert client.get("/health").json()["queue"] == {"running": True, "waiting": 1, "room": 1}
        go.set()
        until(lambda: not worker.waiting)
        assert client.post(f"{AT}/3/test", json={"text": TEXT}).status_code == 200


def test_a_text_that_takes_too_long_is_given_up_within_the_pass(folder: Path) -> None:
    worker = Worker(seconds=0.0)
    with reader(folder, models=here, worker=worker) as client:
        answer = client.post(f"{AT}/3/test", json={"text": TEXT})
        assert answer.status_code == 503
        assert "took longer than 0 seconds" in answer.json()["error"]
        assert not any(module._forward_hooks for module in MODEL.hf.modules())


async def _call(made: Starlette, path: str, body: bytes, leave: asyncio.Event) -> list[dict[str, Any]]:
    """A request whose reader leaves when told to."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8400),
    }
    await made(scope, receive, send)
    return sent


def test_a_reader_who_leaves_while_waiting_takes_the_text_out_of_the_line(folder: Path) -> None:
    worker = Worker()
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    go = threading.Event()
    worker.submit(lambda _: go.wait(120))
    until(lambda: worker.busy)  # or it counts as one that waits

    async def leaving() -> list[dict[str, Any]]:
        leave = asyncio.Event()
        asked = asyncio.ensure_future(_call(made, f"{AT}/3/test", json.dumps({"text": TEXT}).encode(), leave))
        while worker.waiting != 1:
            await asyncio.sleep(0.005)
        leave.set()
        return await asyncio.wait_for(asked, 5)

    sent = asyncio.run(leaving())
    assert sent[0]["status"] == 499
    assert worker.waiting == 0
    go.set()
    worker.close()
    source.atlas.close()


def test_a_reader_who_leaves_while_the_model_runs_ends_the_pass(folder: Path) -> None:
    worker = Worker()
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    begun, ended = threading.Event(), []

    def read(job: Any, text: str, **_: Any) -> Any:
        begun.set()
        try:
            while True:
                time.sleep(0.005)
                job.check()
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    source.live.read = read

    async def leaving() -> None:
        leave = asyncio.Event()
        asked = asyncio.ensure_future(_call(made, f"{AT}/3/test", json.dumps({"text": TEXT}).encode(), leave))
        while not begun.is_set():
            await asyncio.sleep(0.005)
        leave.set()
        await asyncio.wait_for(asked, 5)

    asyncio.run(leaving())
    until(lambda: ended == ["Cancelled"])
    worker.close()
    source.atlas.close()


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_label_is_added_found_and_taken_away(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        added = client.post(f"{AT}/5/labels", json={"text": "rivers & <b>seas</b>", "author": "me"})
        assert added.status_code == 201
        assert added.json()["description"] == "rivers & <b>seas</b>"
        assert added.json()["authorId"] == "me"
        assert client.get(f"{AT}/5.json").json()["explanations"][0] == added.json()
        assert "rivers &amp; &lt;b&gt;seas" in client.get(f"{AT}/5").text
        assert [one["index"] for one in client.get(f"{AT}/search.json?text=river").json()["features"]] == ["5"]
        gone = client.delete(f"{AT}/5/labels/{added.json()['id']}", headers={"accept": "application/json"})
        assert gone.status_code == 204
        assert client.get(f"{AT}/5.json").json()["explanations"] == []
        again = client.delete(f"{AT}/5/labels/{added.json()['id']}", headers={"accept": "application/json"})
        assert again.status_code == 404


def test_labels_can_be_added_and_taken_away_by_forms_alone(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        page = client.get(f"{AT}/5").text
        action = re.search(r'<form class="add" method="post" action="([^"]+)"', page)
        assert action
        added = client.post(action[1], data={"text": "rivers"}, follow_redirects=False)
        assert added.status_code == 303
        assert added.headers["location"] == f"{AT}/5"
        page = client.get(f"{AT}/5").text
        assert "rivers" in page
        form = re.search(r'action="([^"]+/forget)".*?name="id" value="(\d+)"', page, re.DOTALL)
        assert form
        part = client.post(form[1], data={"id": form[2]}, headers={"hx-request": "true"})
        assert part.status_code == 200
        assert "rivers" not in part.text
        assert "<html" not in part.text


@pytest.mark.parametrize(
    "body", [{"text": ""}, {"text": "  "}, {}, {"text": 5}, {"text": "a" * 2001}, {"text": "\ud800"}, [], "text"]
)
def test_what_is_no_label_is_refused(still: TestClient, body: Any) -> None:
    answer = still.post(f"{AT}/5/labels", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].count("\n") == 0


def test_labels_that_mean_harm_are_only_text(still: TestClient) -> None:
    pages = ("/0", "", "/search?text=alert", "/1", "/2", "/3", "/0?embed=true", "?text=alert")
    for path in pages:
        page = still.get(f"{AT}{path}").text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
    assert "&lt;script&gt;alert" in still.get(f"{AT}/0").text
    data = still.get(f"{AT}/0.json")
    assert data.headers["content-type"] == "application/json"
    assert data.json()["explanations"][0]["description"] == HOSTILE_LABEL


def test_readers_see_whole_pages_while_labels_are_written(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        writing = threading.Event()
        wrong: list[int] = []

        def write() -> None:
            for index in range(40):
                if client.post(f"{AT}/{index}/labels", json={"text": f"label {index}"}).status_code != 201:
                    wrong.append(index)
            writing.set()

        def read() -> None:
            while not writing.is_set():
                if client.get(f"{AT}/7").status_code != 200 or client.get(f"{AT}?labelled=true").status_code != 200:
                    wrong.append(-1)

        threads = [threading.Thread(target=one) for one in (write, read, read)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
        assert not wrong
        assert client.get(f"{AT}/39.json").json()["explanations"][0]["description"] == "label 39"


# --- Neuronpedia's calls ----------------------------------------------------------------------------------------------

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
        ("/api/activation/new", {}, "feature is missing"),
        ("/api/activation/new", {"feature": 5, "customText": "a"}, "feature is a number: expected an object"),
        ("/api/activation/new", {"feature": {**PLACE, "index": 99}, "customText": "a"}, "no feature 99"),
        ("/api/activation/new", {"feature": {**PLACE, "index": "٣"}, "customText": "a"}, "expected a whole number"),
        (
            "/api/activation/new",
            {"feature": {"modelId": "tiny-model", "index": 1}, "customText": "a"},
            "source is missing",
        ),
        ("/api/activation/source", {**PLACE, "customText": ["a"] * 5}, "expected 1 to 4"),
        ("/api/activation/source", {**PLACE, "customText": "a" * 10_001}, "at most 10,000"),
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
            needed = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            ).get("required", [])
            answer = live.request(method, path.format(model="tiny-model", source="1-res-tiny", index=3), json={})
            assert answer.status_code == (400 if needed else 200)
            if needed:
                assert answer.json()["error"] == f"{needed[0]} is missing"


# --- what is not there, and what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{AT}/64",
        f"{AT}/99999999999",
        f"{AT}/{'9' * 5000}",
        f"{AT}/-1",
        f"{AT}/1.5",
        f"{AT}/1e3",
        f"{AT}/%D9%A3",
        f"{AT}/%C2%B3",
        f"{AT}/%00",
        f"{AT}/1%00",
        f"{AT}/%201",
        f"{AT}/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/tiny-model/none/0",
        "/none/1-res-tiny/0",
        "/none",
        "/%FF%FE",
        "/a/b/c/d/e",
        "/api/none",
        "/api/feature/tiny-model/1-res-tiny/none",
        "/static/",
        "/static/none.css",
        "/static/%2e%2e/%2e%2e/pyproject.toml",
        "/static/..%2f..%2fserver.py",
        "/static/../../../../etc/passwd",
        "/static//etc/passwd",
        "/static/%2Fetc%2Fpasswd",
        "/static/vendor/../../render.py",
        "/static/gemscope.css%00",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/tiny-model/..%2F..%2Fetc/passwd",
        "/tiny-model%2F..%2F..%2Fmanifest.json",
        "/manifest.json",
    ],
)
def test_what_is_not_there_is_404_as_a_page_and_as_data(still: TestClient, path: str) -> None:
    for accept in ("text/html", "application/json"):
        answer = still.get(path, headers={"accept": accept})
        assert answer.status_code == 404
        is_data = accept == "application/json" or path.startswith("/api/") or path.endswith(".json")
        assert answer.headers["content-type"].startswith("application/json" if is_data else "text/html")
        assert "Traceback" not in answer.text
        assert "root:" not in answer.text
        assert is_data or "<script>alert" not in answer.text
        assert answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "query",
    [
        "order=nonsense",
        "limit=0",
        "limit=100000",
        "offset=-1",
        "offset=%D9%A3",
        "min_density=nan",
        "max_max=1e999",
        "dead=maybe",
        f"text={'a' * 1001}",
    ],
)
def test_a_table_that_cannot_be_is_refused(still: TestClient, query: str) -> None:
    answer = still.get(f"{AT}.json?{query}")
    assert answer.status_code == 400
    assert "expected" in answer.json()["error"] or "at most" in answer.json()["error"]


@pytest.mark.parametrize(
    "text", ['"', "a AND (b OR", "NEAR/", "*", "\x00", "'; DROP TABLE feature; --", "٣", "\u202e", "😀"]
)
def test_any_text_can_be_searched_for(still: TestClient, text: str) -> None:
    for kind in ("label", "token", "text"):
        assert still.get(f"{AT}/search", params={"text": text, "kind": kind}).status_code == 200
    assert still.get(AT, params={"text": text}).status_code == 200


def test_methods_that_are_not_there_are_405(still: TestClient) -> None:
    for method, path in (("POST", AT), ("DELETE", f"{AT}/3"), ("GET", f"{AT}/3/test"), ("PUT", "/"), ("TRACE", "/")):
        answer = still.request(method, path)
        assert answer.status_code == 405, (method, path)
    assert still.head(f"{AT}/3").status_code == 200


def test_a_mistake_of_ours_tells_the_reader_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reader(folder) as client:
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]
        source.atlas.close()
        source.atlas.__class__ = type("Broken", (Atlas,), {"__getitem__": lambda *_: 1 / 0})
        for accept in ("text/html", "application/json"):
            answer = client.get(f"{AT}/3", headers={"accept": accept})
            assert answer.status_code == 500
            assert "division" not in answer.text
            assert "Traceback" not in answer.text
            assert answer.headers["content-security-policy"]


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8400", 200),
        ("localhost:8400", 200),
        ("LOCALHOST", 200),
        ("[::1]:8400", 200),
        ("localhost:9000", 200),  # the other end of a tunnel
        ("evil.example", 421),
        ("evil.example:8400", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8400", 421),
        ("evil.example#localhost", 421),
        ("10.0.0.1:8400", 421),
        ("0.0.0.0:8400", 421),
        ("localhost@evil.example", 400),
        ("evil.example/localhost", 400),
        ("localhost:8400:80", 400),
        ("localhost:port", 400),
        ("", 400),
        ("local host", 400),
    ],
)
def test_only_who_calls_the_server_by_its_name_is_answered(still: TestClient, host: str, status: int) -> None:
    for path in ("/", f"{AT}/3", "/static/gemscope.css", "/health"):
        assert still.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"origin": BASE}, 201),
        ({"origin": BASE, "sec-fetch-site": "same-origin"}, 201),
        ({"sec-fetch-site": "none"}, 201),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://localhost:8400"}, 403),
        ({"origin": "https://127.0.0.1:8400"}, 201),  # a tunnel that speaks https
        ({"origin": "https://127.0.0.1"}, 403),
        ({"origin": BASE, "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "nonsense"}, 403),
        ({"origin": BASE, "sec-fetch-site": ""}, 403),
    ],
)
def test_other_sites_pages_cannot_post(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    with reader(planted(tmp_path / "atlas", features=8)) as client:
        for path in (f"{AT}/3/labels", f"{AT}/3/explain"):
            answer = client.post(path, json={"text": "hello"}, headers=headers)
            assert answer.status_code == status
        explanations = client.get(f"{AT}/3.json").json()["explanations"]
        assert ("hello" in [one["description"] for one in explanations]) == (status == 201)


def test_other_sites_may_link_and_frame_but_not_load(still: TestClient) -> None:
    cross = {"sec-fetch-site": "cross-site"}
    link = {**cross, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert still.get(f"{AT}/3", headers=link).status_code == 200
    assert still.get(f"{AT}/3?embed=true", headers={**link, "sec-fetch-dest": "iframe"}).status_code == 200
    for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("no-cors", "script"), ("navigate", "object")):
        headers = {**cross, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        assert still.get(f"{AT}/3.json", headers=headers).status_code == 403


def test_the_policy_forbids_all_that_comes_from_elsewhere(still: TestClient) -> None:
    paths = ("/", AT, f"{AT}/3", f"{AT}/3.json", f"{AT}/prompt", "/none", "/static/gemscope.css", "/health")
    for path in paths:
        headers = still.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors *" in still.get(f"{AT}/3?embed=true").headers["content-security-policy"]
    for query in ("embed=1", "embed=True", "embed=false", "embed"):
        assert "frame-ancestors 'self'" in still.get(f"{AT}/3?{query}").headers["content-security-policy"]
    assert "frame-ancestors 'self'" in still.get(f"{AT}?embed=true").headers["content-security-policy"]


def test_no_page_has_scripts_or_styles_of_its_own(live: TestClient) -> None:
    acting = (f"{AT}/steer?feature=3&prompt=a&tokens=2&run=true", f"{AT}/attribute?text=cat", f"{AT}/3/output-score")
    reading = ("/", AT, f"{AT}/0", f"{AT}/0?embed=true", f"{AT}/search?text=sea", f"{AT}/prompt?text=cat", "/none")
    for path in (*reading, *acting):
        page = live.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert "<style" not in page
        assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_a_request_that_is_too_long_is_refused_whatever_it_says_of_its_length(still: TestClient) -> None:
    path, kind = f"{AT}/3/labels", {"content-type": "application/json"}
    long = b'{"text": "' + b"a" * 1_000_000 + b'"}'
    assert still.post(path, content=long, headers=kind).status_code == 413
    pieces = still.post(
        path, content=(long[start : start + 50_000] for start in range(0, len(long), 50_000)), headers=kind
    )
    assert pieces.status_code == 413
    assert "1,000,000 bytes" in pieces.json()["error"]
    for length in ("-1", "1e3", "٣", "9" * 30):
        answer = still.post(path, content=b"{}", headers={**kind, "content-length": length.encode()})
        assert answer.status_code in (400, 413)


def test_a_request_that_stops_half_way_is_given_up() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(HTTPException, match="did not arrive in time") as raised:
            await receive()
        assert raised.value.status_code == 408
        await PlainTextResponse("late")(scope, receive, send)

    pieces = [{"type": "http.request", "body": b"a", "more_body": True}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.sleep(60)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(Guard(inner, seconds=0.05)(scope, receive, send))
    assert sent[-1]["body"] == b"late"


def test_a_text_of_a_hundred_thousand_letters_is_refused(live: TestClient) -> None:
    answer = live.post(f"{AT}/3/test", json={"text": "a" * 100_000})
    assert answer.status_code == 400
    assert answer.json()["error"] == "text has 100,000 characters: at most 10,000 are read"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"text": ' + b"9" * 10_000 + b"}", "application/json", 400),
        (b"text=%FF%FE&a", "application/x-www-form-urlencoded", 503),  # text: two signs of replacement
        (b"\xff=\xfe", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a%d=1" % n for n in range(200)), "application/x-www-form-urlencoded", 400),
        (b"text=a", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"text=a", "", 415),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(still: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = still.post(f"{AT}/3/test", content=content, headers={"content-type": kind})
    assert answer.status_code == status


def test_names_of_atlases_that_can_be_no_address_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate(
        (
            {"model_id": "../etc"},
            {"model_id": "api"},
            {"source_id": "a/b"},
            {"source_id": ""},
            {"source_id": "search"},
            {"model_id": "a.json"},
        )
    ):
        planted_atlas(tmp_path / str(number), features=4, **names).close()
        with pytest.raises(InputError, match="cannot be part of an address"):
            app([tmp_path / str(number)])


# --- the token ----------------------------------------------------------------------------------------------------------

TOKEN = "a secret=of&mine"


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[TestClient]:
    with reader(folder, token=TOKEN, hosts=None) as client:
        yield client


def test_with_a_token_every_request_needs_it(locked: TestClient) -> None:
    locked.cookies.clear()
    for path in ("/", f"{AT}/3", f"{AT}/3.json", "/static/gemscope.css", "/health", "/none", f"{AT}/3?token=wrong"):
        answer = locked.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-security-policy"]
    assert locked.post(f"{AT}/3/labels?token={TOKEN}", json={"text": "a"}).status_code == 401
    for headers in (
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"x-api-key": TOKEN},
    ):
        assert locked.get(f"{AT}/3", headers=headers).status_code == 200
    for headers in (
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"x-api-key": TOKEN[:-1]},
        {"x-api-key": "é".encode()},
        {"cookie": f"gemscope-8400={TOKEN}"},
        {"cookie": "gemscope-8400=; \x01="},
    ):
        assert locked.get(f"{AT}/3", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_a_link_with_the_token_lets_a_browser_in_and_does_not_stay_in_the_address(locked: TestClient) -> None:
    locked.cookies.clear()
    answer = locked.get(f"{AT}/3", params={"token": TOKEN, "embed": "true", "x": "é&"}, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{AT}/3?embed=true&x=%C3%A9%26"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert locked.get(answer.headers["location"]).status_code == 200
    assert locked.get("/static/gemscope.css").status_code == 200
    locked.cookies.clear()


def test_a_link_with_the_token_leads_nowhere_else(locked: TestClient) -> None:
    for path in ("//evil.example/a", "/%5Cevil.example", "///evil.example"):
        answer = locked.get(f"{BASE}{path}", params={"token": TOKEN}, follow_redirects=False)
        place = answer.headers["location"]
        assert place.startswith("/")
        assert not place.startswith(("//", "/\\"))
    locked.cookies.clear()


def test_who_follows_a_link_from_elsewhere_gets_in_too(locked: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    answer = locked.get(f"{AT}/3", params={"token": TOKEN, "x": '"><script>'}, headers=headers)
    assert answer.status_code == 200
    assert f'content="0; url={AT}/3?x=' in answer.text
    assert "<script>" not in answer.text
    assert TOKEN not in answer.text
    locked.cookies.clear()


def test_any_name_without_a_token_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="token"):
        app([folder], hosts=None)


# --- static files -------------------------------------------------------------------------------------------------------


def test_static_files_are_kept_for_ever_under_their_digest_and_asked_for_again_otherwise(still: TestClient) -> None:
    page = still.get("/").text
    place = re.search(r'href="(/static/gemscope.css\?v=[0-9a-f]+)"', page)
    assert place
    answer = still.get(place[1])
    assert "immutable" in answer.headers["cache-control"]
    plain = still.get("/static/gemscope.css")
    assert plain.content == answer.content
    assert plain.headers["cache-control"] == "no-cache"
    again = still.get("/static/gemscope.css", headers={"if-none-match": plain.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert "immutable" not in still.get("/static/gemscope.css?v=000000000000").headers["cache-control"]


# --- several atlases ------------------------------------------------------------------------------------------------------


def test_atlases_with_one_address_are_told_apart(tmp_path: Path) -> None:
    for name in "abc":
        planted(tmp_path / name, features=8, seed=ord(name))
    suffix = SAE.digest[:6]
    with reader(tmp_path) as client:
        found = client.get("/index.json").json()["sources"]
        names = ["1-res-tiny", f"1-res-tiny__{suffix}", f"1-res-tiny__{suffix}-2"]
        assert [one["id"] for one in found] == names
        for name in names:
            assert client.get(f"/tiny-model/{name}/3.json").json()["layer"] == name
        assert len({client.get(f"/tiny-model/{name}/3.json").json()["maxActApprox"] for name in names}) == 3


def test_a_folder_without_an_atlas_is_one_clear_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFound, match="no atlas at"):
            app([folder])
    with pytest.raises(InputError, match="no atlas given"):
        shelf([])


# --- serve --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def spoken_to(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connected:
        yield connected


def said(connected: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connected.recv(65536):
            found += more
    return found


def fetched(url: str, headers: str = "") -> bytes:
    host, _, path = url.removeprefix("http://").partition("/")
    with spoken_to(int(host.rpartition(":")[2])) as connected:
        connected.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n".encode())
        return said(connected)


def test_serve_answers_in_the_background_until_it_is_closed(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        answer = fetched(f"{server.url}{AT}/3")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-security-policy" in answer
        assert b"server:" not in answer.lower()
        assert server.url in server._repr_html_()
        assert server.running
    assert not server.running
    assert "closed" in repr(server)
    assert server.url not in server._repr_html_()
    with pytest.raises(OSError):
        fetched(server.url)


def test_serve_reads_texts_with_what_it_is_given(folder: Path) -> None:
    with serve(folder, model=MODEL, sae=SAE, port=0, block=False) as server:
        until(lambda: b'"ready"' in fetched(f"{server.url}/health"))
        assert b'"l0":' in fetched(f"{server.url}{AT}/prompt.json?text=the+cat+and+the+sun")


def test_a_long_text_may_stand_in_an_address(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        answer = fetched(f"{server.url}{AT}/prompt?text={'%F0%9F%98%80' * 9_000}")
        assert answer.startswith(b"HTTP/1.1 200")


def test_a_taken_port_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        port = server.url.rpartition(":")[2]
        assert main(["serve", str(folder), "--port", port, "--no-model"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"port {port}" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"host": "0.0.0.0"}, "give a token"),
        ({"host": ""}, "give a token"),
        ({"host": "192.168.1.5"}, "give a token"),
        ({"host": "example.org"}, "give a token"),
        ({"host": "::"}, "give a token"),
        ({"token": ""}, "the token can be"),
        ({"token": "two\nlines"}, "the token can be"),
        ({"token": "ключ"}, "the token can be"),
        ({"port": 65536}, "port=65536"),
        ({"port": -1}, "port=-1"),
        ({"host": "203.0.113.7", "token": "t"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_listens(
    folder: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        serve(folder, live=False, block=False, **{"port": 0, **options})


def test_a_server_that_others_can_reach_asks_all_of_them_for_the_token(folder: Path) -> None:
    with serve(folder, live=False, host="0.0.0.0", port=0, token="sesame", block=False) as server:
        assert b" 401 " in fetched(f"{server.url}/")
        assert b" 200 " in fetched(f"{server.url}/", "Authorization: Bearer sesame\r\n")
        assert b" 303 " in fetched(server.address)
        assert "sesame" not in server.url
        assert "sesame" not in repr(server)


@pytest.mark.parametrize("part", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_request_that_never_arrives_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with serve(folder, live=False, port=0, block=False) as server, spoken_to(int(server.url[-5:].strip(":"))) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" if part else b"")
        if part:
            slow.recv(65536)
        slow.sendall(part)
        slow.settimeout(120)  # of a connection that stays open nothing is heard, and that is an error
        said(slow)
        assert b" 200 " in fetched(f"{server.url}/health")


REFUSED = {
    "another name": (b"POST /api/steer HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 900000\r\n\r\n", b" 421 "),
    "another site": (
        b"POST /api/steer HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nContent-Length: 900000\r\n\r\n",
        b" 403 ",
    ),
    "too long": (b"POST /api/steer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", b" 413 "),
    "no such page": (b"POST /a/b/c/d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n", b" 404 "),
    "no such method": (
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
        b" 405 ",
    ),
    "answered without a body": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n", b" 200 "),
}
"""Requests that are answered before all of them is there."""


def test_who_is_answered_and_goes_on_sending_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3, raising=False)
    with serve(folder, live=False, port=0, block=False) as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        senders = [(stack.enter_context(spoken_to(port)), status) for _, status in REFUSED.values() for _ in range(4)]
        for (one, _), (head, _) in zip(senders, [pair for pair in REFUSED.values() for _ in range(4)], strict=True):
            one.sendall(head)
        left, until_then = [one for one, _ in senders], time.monotonic() + 120
        while left and time.monotonic() < until_then:
            for one in list(left):
                try:
                    one.sendall(b"a")  # a trickle: fast enough never to be silent
                except OSError:
                    left.remove(one)
            time.sleep(0.05)
        assert len(left) == 0
        for one, status in senders:  # all of the answer is there
            answer = said(one)
            length = re.search(rb"content-length: (\d+)", answer)
            assert status in answer.partition(b"\r\n")[0], answer
            assert length
            assert len(answer.partition(b"\r\n\r\n")[2]) == int(length[1])
        until(lambda: not server._server.server_state.connections)
        assert b" 200 " in fetched(f"{server.url}/health")


def test_who_asks_and_never_reads_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.3, raising=False)
    with serve(folder, live=False, port=0, block=False) as server, spoken_to(int(server.url.rpartition(":")[2])) as one:
        page = f"GET {AT} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.sendall(page * 1000)
        until(lambda: server._server.server_state.connections)
        until(lambda: not server._server.server_state.connections)
        assert b" 200 " in fetched(f"{server.url}/health")


def test_a_body_in_pieces_is_cut_off_by_the_real_server_too(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server, spoken_to(int(server.url.rpartition(":")[2])) as one:
        one.sendall(
            f"POST {AT}/3/labels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"%x\r\n" % 100_000 + b"a" * 100_000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(40):
                one.sendall(piece)
        with contextlib.suppress(OSError):
            assert b" 413 " in one.recv(65536)
        assert b" 200 " in fetched(f"{server.url}/health")


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(folder: Path, head: str) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        with spoken_to(int(server.url.rpartition(":")[2])) as one:
            one.sendall(head.encode("latin-1"))
            one.settimeout(120)
            assert re.match(rb"HTTP/1\.1 (400|421) ", one.recv(65536))
        assert b" 200 " in fetched(f"{server.url}/health")


def test_a_path_outside_is_404_on_the_real_server(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        for path in ("/static/../server.py", "/static/..%2f..%2fpages/render.py", "/../../etc/passwd", "//etc/passwd"):
            answer = fetched(f"{server.url}{path}")
            assert b" 404 " in answer.partition(b"\r\n")[0] + b" "


# --- the shell ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "codes"), [(signal.SIGINT, (0, 130)), (signal.SIGTERM, (143,))])
def test_serve_from_the_shell_says_where_it_is_and_ends_when_it_is_told_to(
    by: signal.Signals, codes: tuple[int, ...], folder: Path
) -> None:
    command = [sys.executable, "-m", "gemscope", "serve", str(folder), "--port", "0", "--no-model"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Whoever runs the tests in the background may have interrupts ignored, which a child inherits.
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listens,  # noqa: PLW1509 what it runs takes no lock
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        url = line.partition(" ")[0]
        assert b" 200 " in fetched(f"{url}tiny-model/1-res-tiny/3")
        process.send_signal(by)
        assert process.wait(120) in codes
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_the_atlas_that_ships_with_the_package_is_served_when_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(server_module, "BUNDLED", folder)
    with serve(live=False, port=0, block=False) as server:
        assert b" 200 " in fetched(f"{server.url}{AT}/3")
    monkeypatch.setattr(server_module, "BUNDLED", tmp_path / "none")
    with pytest.raises(NotFound, match="no atlas ships"):
        serve(live=False, port=0, block=False)


def test_the_other_address_of_this_machine_is_served_too(folder: Path) -> None:
    try:
        server = serve(folder, live=False, host="::1", port=0, block=False)
    except InputError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    with server:
        assert server.url.startswith("http://[::1]:")
        with urllib.request.urlopen(f"{server.url}{AT}/3") as answer:
            assert answer.status == 200


def test_verify_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", "verify", str(folder)]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main(["atlas", "verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "sound": True, "problems": []}
    broken = planted(tmp_path / "atlas", features=8)
    corpus = broken / "corpus.npy"
    corpus.write_bytes(corpus.read_bytes()[:-100])
    assert main(["atlas", "verify", str(broken)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "corpus" in said.err
    assert main(["atlas", "verify", str(tmp_path / "none")]) == 1


def test_serve_without_an_atlas_that_is_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path), "--no-model"]) == 1
    assert "no atlas at" in capsys.readouterr().err


def test_the_server_starts_without_torch_and_the_shell_without_the_server(folder: Path) -> None:
    code = (
        "import sys, gemscope, gemscope.cli.main\n"
        "gemscope.cli.main.parser().format_help()\n"
        "early = [name for name in ('starlette', 'uvicorn', 'jinja2', 'torch') if name in sys.modules]\n"
        "assert not early, early\n"
        "from gemscope.app.server import serve\n"
        f"server = serve({str(folder)!r}, live=False, port=0, block=False)\n"
        "import urllib.request\n"
        "for page in ('3', 'steer?feature=3&add=sea', 'attribute', 'prompt'):\n"
        "    assert urllib.request.urlopen(server.url + '/tiny-model/1-res-tiny/' + page).status == 200\n"
        "heavy = [name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "server.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bundled_atlas_is_labelled_in_a_copy_of_the_reader_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_atlas(tmp_path / "package").close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "package").iterdir()}
    monkeypatch.setattr(server_module, "BUNDLED", tmp_path / "package")
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        (folder,) = server_module._or_bundled(())
        assert Path(folder).is_relative_to(tmp_path / "cache")
        with Atlas(folder) as atlas:
            atlas.explain(1, "mine")
    with Atlas(folder) as atlas:
        assert [one.text for one in atlas[1].explanations][:2] == ["mine", "mine"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "package").iterdir()} == before
    monkeypatch.setenv("GEMSCOPE_CACHE", "/proc/nowhere")
    assert server_module._or_bundled(()) == [tmp_path / "package"]


def test_a_package_that_nobody_may_write_and_a_home_that_nobody_may_enter_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_atlas(tmp_path / "package").close()
    for path in (*(tmp_path / "package").iterdir(), tmp_path / "package"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(server_module, "BUNDLED", tmp_path / "package")
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    (folder,) = server_module._or_bundled(())
    assert all(path.stat().st_mode & 0o200 for path in (Path(folder), *Path(folder).iterdir()))

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refuse)
        assert server_module._own_copy(tmp_path / "package") == tmp_path / "package"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(server_module, "cache_dir", homeless)
    assert server_module._own_copy(tmp_path / "package") == tmp_path / "package"
