"""The pages on which a model acts: what they write and measure is the library's, who may ask for it, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gemscope.app import acting, events, steering
from gemscope.app.server import app
from gemscope.app.worker import Worker
from gemscope.atlas.reader import Atlas
from gemscope.atlas.units import units_of
from gemscope.cli import options
from gemscope.cli.main import main
from gemscope.edits import ways
from gemscope.edits.clamp import Ablate, Clamp
from gemscope.edits.steer import Project, Steer
from gemscope.reports.attribute import attribute
from gemscope.reports.output_score import output_score
from gemscope.reports.steer import steer
from served import AT, BASE, MODEL, SAE, TEXT, here, planted, reader, until

STEER = f"{AT}/steer"
PROMPT = "the sea and the"
ASKED: dict[str, Any] = {"feature": [5, 9], "strength": ["2max", "-1.5max"], "prompt": PROMPT, "tokens": 6, "seed": 3}
BODY: dict[str, Any] = {
    "prompt": PROMPT,
    "modelId": "tiny-model",
    "features": [{"modelId": "tiny-model", "layer": "1-res-tiny", "index": 5, "strength": 4.0}],
    "temperature": 0.5,
    "n_tokens": 6,
    "freq_penalty": 1.0,
    "seed": 16,
    "strength_multiplier": 2.0,
    "steer_method": "SIMPLE_ADDITIVE",
}
LINKED = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
"""What a browser says of a link on another site's page."""
HOSTILE = "<script>alert(1)</script> \u202e{{ 7*7 }}"


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


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def told(answer: Any) -> list[tuple[str, Any]]:
    """The events of a stream."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parsed(answer.text)


def parsed(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


# --- the steer view ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_library_writes(live: TestClient, folder: Path) -> None:
    found = live.get(f"{STEER}.json", params={**ASKED, "run": True}).json()
    with Atlas(folder) as atlas:
        units = units_of(atlas, MODEL, SAE)
    edits = [Steer(SAE, 5, units.max(5, 2)), Steer(SAE, 9, units.max(9, -1.5))]
    expected = steer(MODEL, PROMPT, edits, max_new_tokens=6, temperature=0.5, seed=3).to_dict()
    (run,) = found["runs"]
    assert run == as_json({"name": "steered", **expected})
    assert run["pairs"][0]["default"]["text"] != run["pairs"][0]["steered"]["text"]
    assert [one["raw"] for one in found["features"]] == pytest.approx([units.max(5, 2).raw, units.max(9, -1.5).raw])
    assert [one["index"] for one in found["features"]] == ["5", "9"]
    assert live.post(f"{STEER}.json", json=ASKED).json()["runs"] == found["runs"]
    assert live.post(f"{STEER}.json", data=ASKED).json()["runs"] == found["runs"]


@pytest.mark.parametrize(
    ("asked", "edits"),
    [
        ({"how": "clamp", "at": "generated"}, lambda by: [Clamp(SAE, 5, by, at="generated")]),
        ({"how": "ablate", "at": "prompt"}, lambda _: [Ablate(SAE, 5, at="prompt")]),
        ({"how": "project", "factor": 3}, lambda _: [Project(SAE, 5, 3.0)]),
        ({"how": "add"}, lambda by: [Steer(SAE, 5, by)]),
    ],
)
def test_each_way_of_steering_is_the_edit_of_its_name(
    live: TestClient, folder: Path, asked: dict[str, Any], edits: Callable[[Any], list[Any]]
) -> None:
    state = {"feature": 5, "strength": "2max", "prompt": PROMPT, "tokens": 4, "n": 2, "temperature": 1, "run": True}
    (run,) = live.get(f"{STEER}.json", params={**state, **asked}).json()["runs"]
    with Atlas(folder) as atlas:
        units = units_of(atlas, MODEL, SAE)
    made = steer(MODEL, PROMPT, edits(units.max(5, 2)), n=2, max_new_tokens=4, temperature=1.0, seed=16)
    assert run == as_json({"name": "steered", **made.to_dict()})


@pytest.mark.parametrize(("written", "unit"), [("8", "raw"), ("8raw", "raw"), ("2max", "max"), ("0.5norm", "norm")])
def test_a_strength_means_the_same_wherever_it_is_written(
    live: TestClient, folder: Path, written: str, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Atlas(folder) as atlas:
        units = units_of(atlas, MODEL, SAE)
    strength = {"raw": units.raw, "max": units.max, "norm": units.norm}[unit](5, float(written.removesuffix(unit)))
    how: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.5, "seed": 16}
    expected = steer(MODEL, PROMPT, [Steer(SAE, 5, strength)], **how).to_dict()
    assert expected["strengths"] == [vars(strength)]
    view = live.get(
        f"{STEER}.json", params={"feature": 5, "strength": written, "prompt": PROMPT, "tokens": 6, "run": 1}
    )
    (shown,) = view.json()["features"]
    assert {name: shown[name] for name in ("raw", "of_max", "of_norm")} == pytest.approx(vars(strength), rel=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "model_of", lambda *_: MODEL)
        patch.setattr(options, "sae_of", lambda *_: SAE)
        words = ["steer", "model", "sae", f"5={written}", PROMPT, "--atlas", str(folder), "-n", "1", "--json"]
        assert main([*words, "--max-new-tokens", "6"]) == 0
    shell = json.loads(capsys.readouterr().out)
    for found in (view.json()["runs"][0], shell):
        assert {name: found[name] for name in ("edits", "strengths", "pairs")} == as_json(
            {name: expected[name] for name in ("edits", "strengths", "pairs")}
        )
    if unit == "raw":  # all that Python and Neuronpedia's call know
        assert expected["pairs"] == steer(MODEL, PROMPT, [Steer(SAE, 5, 8.0)], **how).to_dict()["pairs"]
        body = {**BODY, "features": [{**BODY["features"][0], "strength": 8}], "strength_multiplier": 1}
        theirs = live.post("/api/steer", json=body).json()
        assert theirs["STEERED"] == PROMPT + as_json(expected)["pairs"][0]["steered"]["text"]
        link = live.get(
            urlsplit(theirs["shareUrl"]).path + ".json", params=parse_qs(urlsplit(theirs["shareUrl"]).query)
        )
        assert link.json()["features"][0]["strength"] == "8"


@pytest.mark.parametrize(("how", "way"), ways.WAYS.items())
def test_each_way_is_the_same_edit_in_the_shell_and_in_the_view(
    live: TestClient, folder: Path, how: str, way: ways.Way, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"a strength": ("=2max", {"strength": "2max"}), "a factor": ("=3", {"factor": 3}), "nothing": ("", {})}
    word, asked = said[way.takes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "model_of", lambda *_: MODEL)
        patch.setattr(options, "sae_of", lambda *_: SAE)
        words = ["steer", "model", "sae", f"5{word}", PROMPT, "--atlas", str(folder), "-n", "1", "--json", "--how", how]
        assert main([*words, "--max-new-tokens", "4"]) == 0
    view = {"feature": 5, "prompt": PROMPT, "tokens": 4, "run": True, "how": how, **asked}
    (run,) = live.get(f"{STEER}.json", params=view).json()["runs"]
    shell = json.loads(capsys.readouterr().out)
    assert {name: run[name] for name in ("edits", "pairs")} == {name: shell[name] for name in ("edits", "pairs")}
    assert f'<option value="{how}"' in live.get(STEER).text


def test_the_controls_are_written_beside_it(live: TestClient) -> None:
    asked = {**ASKED, "random": True, "noise": True, "run": True}
    runs = live.get(f"{STEER}.json", params=asked).json()["runs"]
    assert [run["name"] for run in runs] == ["steered", "random", "noise"]
    # The same dice: all three are compared with one and the same text.
    assert len({run["pairs"][0]["default"]["text"] for run in runs}) == 1
    other = re.findall(r"(\d+) for (\d+)", runs[1]["control"])
    assert [ours for _, ours in other] == ["5", "9"]
    assert not {theirs for theirs, _ in other} & {"5", "9"}
    assert runs[2]["control"] == "random directions of the same length"
    assert live.get(f"{STEER}.json", params=asked).json()["runs"] == runs


def test_the_texts_come_while_they_are_written(live: TestClient) -> None:
    asked = {**ASKED, "n": 2, "random": True}
    found = told(live.get(f"{STEER}/stream", params=asked))
    frames = [value for name, value in found if name == "frame"]
    assert frames
    for run in ("steered", "random"):
        texts = [frame["steered"] for frame in frames if frame["run"] == run]
        for before, after in itertools.pairwise(texts):
            assert all(late.startswith(early) for early, late in zip(before, after, strict=True))
    name, done = found[-1]
    assert name == "done"
    assert [name for name, _ in found[:-1]] == ["frame"] * len(frames)
    whole = live.get(f"{STEER}.json", params={**asked, "run": True}).json()
    assert done["runs"] == whole["runs"]
    assert done["url"] == whole["url"]
    assert done["html"].count("<token-strip") == 2 * 3


def test_the_address_carries_the_whole_state(live: TestClient) -> None:
    state = {
        **ASKED, "factor": [0.5, 2], "how": "scale", "at": "prompt", "temperature": 1.25, "n": 3,
        "random": True, "noise": True, "prompt": "a & b = “c”?\n#d",
    }  # fmt: skip
    found = live.get(f"{STEER}.json", params=state).json()
    assert found["runs"] is None  # nothing is written unless it is asked for
    again = live.get(f"{STEER}.json?{urlsplit(found['url']).query}").json()
    assert again == found
    for name in ("how", "at", "temperature", "n", "random", "noise", "prompt", "seed", "tokens"):
        assert found[name] == state[name]
    page = live.get(found["url"]).text
    assert 'value="-1.5max">' in page
    assert 'name="factor" step="any" value="0.5"' in page
    assert '<option value="scale" selected>' in page
    assert "a &amp; b = “c”?\n#d</textarea>" in page
    assert page.count(" checked") == 2


def test_a_form_alone_gives_a_whole_page_with_what_was_written(live: TestClient) -> None:
    answer = live.get(STEER, params={**ASKED, "prompt": HOSTILE, "run": True})
    assert answer.status_code == 200
    assert answer.text.startswith("<!doctype html>")
    assert "The model alone</h3>" in answer.text
    assert "Steered</h3>" in answer.text
    assert "<script>alert" not in answer.text
    assert "add feature 5" in answer.text
    posted = live.post(STEER, data={**ASKED, "prompt": HOSTILE})
    strips = re.findall(r"<token-strip.*?</token-strip>", answer.text, re.DOTALL)
    assert re.findall(r"<token-strip.*?</token-strip>", posted.text, re.DOTALL) == strips
    assert len(strips) == 2


def test_a_feature_is_added_by_its_number_or_by_its_label(live: TestClient) -> None:
    found = live.get(f"{STEER}.json", params={**ASKED, "add": "12", "run": True}).json()
    assert [(one["index"], one["strength"]) for one in found["features"]] == [
        ("5", "2max"), ("9", "-1.5max"), ("12", "1max"),
    ]  # fmt: skip
    assert found["runs"] is None
    by_label = live.get(f"{STEER}.json", params={**ASKED, "add": "sea words"}).json()
    assert len(by_label["features"]) == 2
    assert any("sea" in one["description"] for one in by_label["suggestions"])
    part = live.get(STEER, params={**ASKED, "add": "sea words"}, headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert f'name="add" value="{by_label["suggestions"][0]["index"]}"' in part
    assert "No feature 999" in live.get(STEER, params={"add": "999"}).text
    assert "No label says that" in live.get(STEER, params={"add": "zzzz"}).text
    assert "is there already" in live.get(STEER, params={**ASKED, "add": "9"}).text


def test_a_feature_is_taken_out_by_a_link(live: TestClient) -> None:
    page = live.get(STEER, params=ASKED).text
    links = [link.replace("&amp;", "&") for link in re.findall(r'data-remove href="([^"]+)"', page)]
    assert [parse_qs(urlsplit(link).query)["feature"] for link in links] == [["9"], ["5"]]
    assert parse_qs(urlsplit(links[0]).query)["strength"] == ["-1.5max"]


def test_the_units_are_measured_once_and_then_stand_on_the_page(folder: Path) -> None:
    with reader(folder, models=here) as client:
        assert "× median norm" not in client.get(f"{AT}/5").text
        found = client.get(f"{STEER}/units.json", params={"feature": [5, 6]}).json()
        with Atlas(folder) as atlas:
            units = units_of(atlas, MODEL, SAE)
            top = atlas[5].max
        assert found["median_norm"] == pytest.approx(units.median_norm)
        assert set(found["features"]) == {"5"}  # 6 never fired
        assert found["features"]["5"] == pytest.approx({"max": top, "of_norm": units.max(5).of_norm}, rel=1e-5)
        assert "× median norm" in client.get(f"{AT}/5").text
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]
        kept = source.live.known_units
        client.get(f"{STEER}/units.json", params={"feature": 9})
        assert source.live.known_units is kept


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ({"feature": 99}, 404, "no feature 99"),
        ({"feature": 6}, 400, "feature 6 fires on none"),
        ({"feature": "x"}, 400, "expected a whole number"),
        ({"feature": [5, 5]}, 400, "named twice"),
        ({"feature": list(range(21))}, 400, "feature has 21 values: at most 20"),
        ({"strength": "nan"}, 400, "'nan' is no strength"),
        ({"strength": "inf"}, 400, "'inf' is no strength"),
        ({"strength": "2 apples"}, 400, "expected such as 2max, 0.5norm or 30 (raw)"),
        ({"strength": "1e300"}, 400, "expected a strength from -1,000,000"),
        ({"strength": "-2e6max"}, 400, "expected a strength from -1,000,000"),
        ({"how": "scale", "noise": True}, 400, "noise can only be added"),
        ({"factor": "-inf"}, 400, "factor="),
        ({"how": "melt"}, 400, "how='melt': expected add, clamp, at-least"),
        ({"at": "nowhere"}, 400, "at='nowhere'"),
        ({"temperature": 2.5}, 400, "expected a number from 0 to 2"),
        ({"temperature": -0.1}, 400, "expected a number from 0 to 2"),
        ({"tokens": 0}, 400, "expected a whole number from 1 to 256"),
        ({"tokens": 257}, 400, "expected a whole number from 1 to 256"),
        ({"n": 9}, 400, "from 1 to 8"),
        ({"seed": 10**9}, 400, "seed="),
        ({"prompt": "a" * 2049}, 400, "at most 2,048"),
        ({"prompt": "  "}, 400, "prompt is empty"),
        ({"prompt": "a b " * 80}, 400, "reads up to 128"),
    ],
)
def test_what_cannot_be_steered_with_is_one_line_with_its_status(
    live: TestClient, state: dict[str, Any], status: int, said: str
) -> None:
    asked = {"feature": 5, "prompt": PROMPT, "tokens": 4, **state}
    for answer in (
        live.get(f"{STEER}.json", params={**asked, "run": True}),
        live.get(f"{STEER}/stream", params=asked, headers={"accept": "text/event-stream, application/json"}),
    ):
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    page = live.get(STEER, params={**asked, "run": True})
    assert page.status_code == status
    assert "Traceback" not in page.text


def test_with_nothing_to_steer_with_nothing_is_written(live: TestClient) -> None:
    answer = live.get(f"{STEER}/stream", params={"prompt": PROMPT}, headers={"accept": "application/json"})
    assert answer.status_code == 400
    assert "feature is missing" in answer.json()["error"]
    assert live.get(STEER).status_code == 200


def test_without_a_model_nothing_is_written_and_it_is_said_why(still: TestClient) -> None:
    assert "without a model" in still.get(STEER, params=ASKED).text
    assert "<steer-panel" not in still.get(f"{AT}/5").text
    for path in (f"{STEER}.json?run=true&", f"{STEER}/stream?", f"{STEER}/units.json?", f"{AT}/5/output-score.json?"):
        answer = still.get(f"{path}{urlencode(ASKED, doseq=True)}", headers={"accept": "application/json"})
        assert answer.status_code == 503, path
        assert "without a model" in answer.json()["error"]
    assert still.post("/api/steer", json=BODY).status_code == 503
    assert "without a model" in still.get(f"{AT}/attribute", params={"text": "a"}).text


# --- the panel on a feature's page ------------------------------------------------------------------------------------


def test_a_feature_s_page_has_a_panel_that_leads_to_the_steer_view(live: TestClient) -> None:
    page = live.get(f"{AT}/5").text
    assert page.count("<steer-panel") == 1
    link = re.search(r'data-open href="([^"]+)"', page)
    assert link
    found = live.get(link[1].replace("&amp;", "&").replace("/steer?", "/steer.json?")).json()
    assert [one["index"] for one in found["features"]] == ["5"]
    assert found["prompt"]
    # A form alone leads there as well, and writes.
    fields = dict(re.findall(r'name="(feature|strength|seed|tokens)"[^>]*value="([^"]*)"', page))
    assert fields == {"feature": "5", "strength": "1max", "seed": "16", "tokens": "40"}
    assert "<steer-panel" not in live.get(f"{AT}/6").text  # a dead one has no strength to be measured in


def test_frames_show_the_panel_unless_their_address_says_not_to(live: TestClient) -> None:
    assert "<steer-panel" in live.get(f"{AT}/5?embed=true").text
    assert "<steer-panel" not in live.get(f"{AT}/5?embed=true&embedsteer=false").text
    assert "<steer-panel" in live.get(f"{AT}/5?embedsteer=false").text  # it is for frames alone


def test_pages_do_not_wait_for_a_text_that_is_being_written(folder: Path) -> None:
    with reader(folder, models=here) as client:
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]
        begun, go = threading.Event(), threading.Event()

        def slow(job: Any, *_: Any) -> Any:
            begun.set()
            while not go.wait(0.005):
                job.check()
            return ()

        source.live.steer = slow
        writing = threading.Thread(target=lambda: client.get(f"{STEER}.json", params={**ASKED, "run": True}))
        writing.start()
        assert begun.wait(120)
        for path in (f"{AT}/5", STEER, AT, f"{AT}/search?text=sea", "/health"):
            assert client.get(path).status_code == 200
        assert client.get("/health").json()["queue"]["running"]
        go.set()
        writing.join(120)


# --- the line, and who leaves it --------------------------------------------------------------------------------------


class Listener:
    """Somebody who reads a stream, and may leave."""

    def __init__(self, made: Starlette, path: str, query: dict[str, Any], **headers: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()
        self._asked = False
        said = {"host": "localhost", "accept": "text/event-stream, application/json", **headers}
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": urlencode(query, doseq=True).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8400),
        }
        self.task = asyncio.ensure_future(made(self.scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(one.get("body", b"") for one in self.sent).decode()

    async def hears(self, part: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while part not in self.text:
            assert time.monotonic() < end, self.text
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def application(folder: Path, worker: Worker) -> Iterator[tuple[Starlette, Any]]:
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    try:
        yield made, source
    finally:
        worker.close()
        source.atlas.close()


def test_who_waits_is_told_how_many_are_before_them_and_that_the_server_lives(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    monkeypatch.setattr(events, "BEAT", 0.05)
    worker = Worker()
    with application(folder, worker) as (made, _):
        gates = [threading.Event(), threading.Event()]
        for gate in gates:
            worker.submit(lambda _, gate=gate: gate.wait(120))  # type: ignore[misc]

        async def waiting() -> str:
            one = Listener(made, f"{STEER}/stream", ASKED)
            await one.hears('event: wait\ndata: {"ahead":2}')
            await one.hears(": still there")
            gates[0].set()
            await one.hears('event: wait\ndata: {"ahead":1}')
            gates[1].set()
            await one.hears("event: done")
            await asyncio.wait_for(one.task, 5)
            assert one.sent[-1]["more_body"] is False
            return one.text

        heard = [(name, value) for name, value in parsed(asyncio.run(waiting())) if name in ("wait", "done")]
        assert [value["ahead"] for name, value in heard if name == "wait"][:2] == [2, 1]
        assert heard[-1][0] == "done"


def test_who_leaves_while_a_text_is_written_ends_it_and_leaves_the_model_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    steps: list[int] = []

    def slowly(job: Any, *given: Any) -> Any:
        tell = job.tell

        def telling(news: Any) -> None:
            steps.append(news.frame.n)
            tell(news)
            time.sleep(0.02)

        job.tell = telling
        return steering.stream(job, *given)

    worker = Worker()
    with application(folder, worker) as (made, source):
        units = source.live.units
        source.live.steer = lambda job, atlas, asked: slowly(job, MODEL, SAE, units(job, atlas), asked)
        plain = MODEL.logits(TEXT)

        async def leaving() -> None:
            one = Listener(made, f"{STEER}/stream", {**ASKED, "tokens": 100})
            await one.hears("event: frame")
            one.leave.set()
            await asyncio.wait_for(one.task, 5)
            assert "event: done" not in one.text

        asyncio.run(leaving())
        until(lambda: not worker.busy)
        assert 0 < len(steps) < 90
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in MODEL.hf.modules())
        assert (MODEL.logits(TEXT) == plain).all()
        assert worker.submit(lambda _: "next").outcome.result(5) == "next"


def test_who_leaves_the_line_is_never_written_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    worker = Worker()
    with application(folder, worker) as (made, source):
        source.live.steer = lambda *_: pytest.fail("it was written")
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy)  # or it counts as one that waits

        async def leaving() -> None:
            one = Listener(made, f"{STEER}/stream", ASKED)
            await one.hears("event: wait")
            assert worker.waiting == 1
            one.leave.set()
            await asyncio.wait_for(one.task, 5)

        asyncio.run(leaving())
        assert worker.waiting == 0
        go.set()


def test_a_text_that_takes_too_long_is_given_up(live: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "WRITING", 0.0)
    for path in (f"{STEER}.json?run=true&", f"{STEER}/stream?"):
        answer = live.get(f"{path}{urlencode(ASKED, doseq=True)}", headers={"accept": "application/json"})
        assert answer.status_code == 503
        assert "longer than 0 seconds: ask for less" in answer.json()["error"]


def test_what_fails_after_the_first_word_is_said_in_the_stream(folder: Path) -> None:
    with reader(folder, models=here) as client:
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]

        def breaks(job: Any, *_: Any) -> Any:
            frame = steering.Frame(("a",), ("b",), 1)
            job.tell(steering.Partial("steered", frame))
            time.sleep(0.1)
            raise ZeroDivisionError("secret")

        source.live.steer = breaks
        found = told(client.get(f"{STEER}/stream", params=ASKED))
        assert [name for name, _ in found] == ["frame", "failed"]
        assert found[-1][1] == {"error": "something went wrong in the server; its log says what"}


def test_when_too_many_wait_the_next_is_turned_away_from_a_stream_too(folder: Path) -> None:
    worker = Worker(room=1)
    with reader(folder, models=here, worker=worker) as client:
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy and not worker.waiting)
        worker.submit(lambda _: None)
        answer = client.get(f"{STEER}/stream", params=ASKED, headers={"accept": "application/json"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        go.set()


# --- who may ask ------------------------------------------------------------------------------------------------------

QUERY = urlencode(ASKED, doseq=True)
COSTLY = (
    f"{STEER}/stream?{QUERY}",
    f"{STEER}/units.json?feature=5",
    f"{STEER}.json?run=true&{QUERY}",
    f"{AT}/attribute.json?text=the+cat",
    f"{AT}/prompt.json?text=the+cat",
    f"{AT}/search.json?kind=text&text=the+cat",
    f"{AT}/5/output-score.json",
)
"""Data that takes work."""
COSTLY_PAGES = {
    f"{STEER}?run=true&{QUERY}": "Press Generate",
    f"{AT}/attribute?text=the+cat&position=1&target=a": "Press Explain",
    f"{AT}/prompt?text=the+cat&pin=5": "Press Look",
    f"{AT}/search?kind=text&text=the+cat": "Press Search",
    f"{AT}/5/output-score": "Measure it",
    f"{AT}/5?embed=true&defaulttesttext=the+cat": ">the cat</textarea>",
    f"{AT}/5?embed=true&embedtestfield=false&defaulttesttext=the+cat": ">the cat</p>",
    f"{AT}/5?defaulttesttext=the+cat": ">the cat</textarea>",
}
"""Pages that show what their address carries, and do it when their reader says so."""
BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}
OURS = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "referer": f"{BASE}{STEER}"}


@pytest.fixture
def idle(live: TestClient) -> Iterator[TestClient]:
    """The same, and nobody may be given work."""
    with pytest.MonkeyPatch.context() as patch:
        worker = live.app.state.worker  # type: ignore[attr-defined]
        patch.setattr(worker, "submit", lambda *_, **__: pytest.fail("the model was asked"))
        live.app.state.shelf.get("tiny-model", "1-res-tiny").scores.clear()  # type: ignore[attr-defined]
        yield live


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    ],
)
def test_what_other_sites_pages_fetch_is_refused(idle: TestClient, headers: dict[str, str]) -> None:
    for path in (*COSTLY, *COSTLY_PAGES):
        assert idle.get(path, headers=headers).status_code == 403, path
    for path, body in (("/api/steer", BODY), (f"{STEER}.json", ASKED)):
        assert idle.post(path, json=body, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        LINKED,
        {**LINKED, "sec-fetch-dest": "iframe"},
        {**LINKED, "sec-fetch-site": "same-site"},
        {**LINKED, "sec-fetch-site": "none"},  # typed, a bookmark, a link in a letter
        {**OURS, "sec-purpose": "prefetch;prerender"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"referer": "http://evil.example/page"},
        {"referer": "http://127.0.0.1:9999/page"},
        BROWSER,  # that does not say where it comes from
    ],
)
def test_an_address_alone_sets_no_model_to_work(idle: TestClient, headers: dict[str, str]) -> None:
    for path in COSTLY:
        answer = idle.get(path, headers={**headers, "accept": "application/json"})
        assert answer.status_code == 403, path
        assert "press the button" in answer.json()["error"]
    for path, shown in COSTLY_PAGES.items():
        answer = idle.get(path, headers=headers)
        assert answer.status_code == 200, path
        assert shown in answer.text, path


def test_what_an_address_carries_is_filled_in(idle: TestClient) -> None:
    def field(path: str, name: str, headers: dict[str, str]) -> list[str]:
        return re.findall(rf'name="{name}" value="([^"]*)"', idle.get(path, headers=headers).text)

    assert field(f"{AT}/prompt?text=the+cat&pin=5", "pin", LINKED) == ["5"]
    causes = f"{AT}/attribute?text=the+cat&position=1&target=a&k=3"
    assert [field(causes, name, LINKED) for name in ("position", "target", "k")] == [["1"], ["a"], ["3"]]


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        OURS,
        {**OURS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
        {**BROWSER, "referer": f"{BASE}{STEER}"},  # a browser over plain HTTP
        {**BROWSER, "origin": BASE},
    ],
)
def test_our_own_pages_and_programs_can(live: TestClient, headers: dict[str, str]) -> None:
    for path in (*COSTLY, *COSTLY_PAGES):
        assert live.get(path, headers=headers).status_code == 200, path
    assert live.get(COSTLY[2], headers={**headers, "accept": "application/json"}).json()["runs"]
    assert "<table" in live.get(f"{AT}/prompt?text=the+cat", headers=headers).text


def test_a_form_in_a_frame_that_no_script_takes_over_leads_to_a_page_of_ours_and_writes_nothing(
    live: TestClient,
) -> None:
    frame = live.get(f"{AT}/5?embed=true&defaulttesttext=the+cat").text
    forms = re.findall(r"<form[^>]*>", frame)
    assert len(forms) == 2
    assert all('target="_blank"' in form and "action=" in form for form in forms)
    assert 'name="run"' not in frame
    assert 'name="run"' in live.get(f"{AT}/5").text
    assert ">the cat</textarea>" in live.get(f"{AT}/5?text=the+cat").text


def test_only_who_calls_the_server_by_its_name_and_brings_its_token_gets_a_text(folder: Path) -> None:
    with reader(folder, models=here, token="sesame") as client:
        assert client.get(f"{STEER}/stream", params=ASKED).status_code == 401
        assert client.post("/api/steer", json=BODY).status_code == 401
        bearer = {"authorization": "Bearer sesame"}
        assert client.get(f"{STEER}/stream", params=ASKED, headers=bearer).status_code == 200
        assert (
            client.get(f"{STEER}/stream", params=ASKED, headers={**bearer, "host": "evil.example"}).status_code == 421
        )


# --- Neuronpedia's call -----------------------------------------------------------------------------------------------


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
        ({"prompt": "a" * 2049}, 400, "at most 2,048"),
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"features": []}, 400, "features is empty"),
        ({"features": BODY["features"] * 21}, 400, "features has 21 values: at most 20"),
        ({"features": 5}, 400, "features is a number: expected a list"),
        ({"features": [{**BODY["features"][0], "strength": "nan"}]}, 400, "strength='nan': expected a number"),
        ({"features": [{**BODY["features"][0], "strength": None}]}, 400, "strength is missing"),
        ({"features": [{**BODY["features"][0], "index": 99}]}, 404, "no feature 99"),
        ({"features": [{**BODY["features"][0], "layer": "9-none"}]}, 404, "no atlas '9-none'"),
        ({"modelId": "another"}, 400, "modelId is 'another', but feature 5 is of 'tiny-model'"),
        ({"n_tokens": 0}, 400, "from 1 to 256"),
        ({"n_tokens": 257}, 400, "from 1 to 256"),
        ({"temperature": 2.1}, 400, "from 0 to 2"),
        ({"strength_multiplier": 11}, 400, "from 0 to 10"),
        ({"freq_penalty": 3}, 400, "from -2 to 2"),
        ({"seed": "x"}, 400, "seed='x'"),
        ({"steer_method": "PROJECTION_CAP"}, 400, "expected SIMPLE_ADDITIVE, ORTHOGONAL_DECOMP"),
    ],
)
def test_a_steer_call_that_cannot_be_answered_is_told_why(
    live: TestClient, change: dict[str, Any], status: int, said: str
) -> None:
    for stream in (False, True):
        answer = live.post("/api/steer", json={**BODY, **change, "stream": stream})
        assert answer.status_code == status
        assert said in answer.json()["error"]


# --- causes and effects -----------------------------------------------------------------------------------------------


def test_the_causes_of_a_prediction_are_what_attribute_finds(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/attribute.json", params={"text": TEXT, "k": 5}).json()
    expected = as_json(attribute(MODEL, SAE, TEXT, k=5).to_dict())
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
    links = [link.replace("&amp;", "&") for link in re.findall(r'<a href="([^"]+/attribute\?[^"]+)"', prompt)]
    tokens = live.get(f"{AT}/prompt.json", params={"text": TEXT}).json()["tokens"]
    assert len(links) == len(tokens)
    part = live.get(links[3], headers={"hx-request": "true"}).text
    assert "<html" not in part
    page = live.get(links[3]).text
    assert page.startswith("<!doctype html>")
    assert "<caption>" in part
    assert 'value="3" selected' in part
    data = live.get(links[3].replace("/attribute?", "/attribute.json?")).json()
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
        ({"text": "a" * 10_001}, "at most 10,000"),
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


# --- turns of a chat --------------------------------------------------------------------------------------------------

_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BOX = r'<input type="checkbox" name="chat" value="true"( checked)?>'


@pytest.fixture
def chats(live: TestClient) -> Iterator[TestClient]:
    """The same with a model that was made for chats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.tokenizer, "chat_template", _TEMPLATE)
        yield live


def rendered(text: str, *, reply: bool) -> list[str]:
    """The tokens of a user's turn, as transformers itself gives them."""
    turns = [{"role": "user", "content": text}]
    ids = MODEL.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=reply)
    return MODEL.strings(ids["input_ids"])


def test_a_text_is_read_as_a_chat_turn_where_that_is_asked_for(chats: TestClient) -> None:
    asked = {"text": TEXT, "chat": "true"}
    found = chats.get(f"{AT}/prompt.json", params={**asked, "pin": 5}).json()
    assert [one["token"] for one in found["tokens"]] == rendered(TEXT, reply=False)
    assert len(found["values"]) == len(found["tokens"])
    plain = chats.get(f"{AT}/prompt.json", params={"text": TEXT}).json()
    assert len(plain["tokens"]) < len(found["tokens"])
    causes = chats.get(f"{AT}/attribute.json", params={**asked, "position": 2}).json()
    assert causes["tokens"] == rendered(TEXT, reply=True)
    for method in (chats.get, chats.post):  # a form alone, without scripts
        page = method(f"{AT}/prompt", **{"params" if method == chats.get else "data": asked}).text
        assert re.findall(_BOX, page) == [" checked"]
        assert page.count("<tr") == 1 + len(found["tokens"])
        links = re.findall(r'<a href="[^"]+/attribute\?([^"]+)"', page)
        assert links
        assert all("chat=true" in link for link in links)  # the same tokens are counted there
    cause = chats.get(f"{AT}/attribute", params=asked).text
    assert 'type="hidden" name="chat" value="true"' in cause
    assert re.findall(_BOX, cause) == [" checked"]


def test_a_prompt_is_replied_to_as_a_chat_turn_and_the_link_keeps_it(chats: TestClient) -> None:
    asked = {"feature": 5, "strength": 2, "prompt": PROMPT, "tokens": 4, "temperature": 0, "chat": "true"}
    found = chats.get(f"{STEER}.json", params={**asked, "run": True}).json()
    assert found["chat"] is True
    pair = found["runs"][0]["pairs"][0]
    assert found["runs"][0]["prompt"] == "".join(rendered(PROMPT, reply=True))
    assert pair["default"]["text"] == MODEL.generate([{"role": "user", "content": PROMPT}], max_new_tokens=4)
    assert "chat=true" in urlsplit(found["url"]).query
    again = chats.get(f"{STEER}.json?{urlsplit(found['url']).query}&run=true").json()
    assert again["runs"] == found["runs"]
    page = chats.get(f"{STEER}", params=asked).text
    assert re.findall(_BOX, page) == [" checked"]
    assert "chat=true" in re.findall(r'data-remove href="([^"]+)"', page)[0]
    (name, _), *_, (done, last) = told(chats.get(f"{STEER}/stream", params=asked))
    assert (name, done) == ("frame", "done")
    assert last["runs"][0]["pairs"][0]["default"]["text"] == pair["default"]["text"]
    assert re.findall(_BOX, chats.get(STEER, params={**asked, "chat": "false"}).text) == [""]


def test_where_the_model_has_no_chat_template_no_box_is_there_and_a_link_is_one_line(live: TestClient) -> None:
    assert not re.findall(_BOX, live.get(f"{AT}/prompt").text)
    assert not re.findall(_BOX, live.get(STEER).text)
    for path, name in (("prompt", "text"), ("attribute", "text"), ("steer", "prompt")):
        asked = {name: TEXT, "chat": "true", "feature": 5, "run": "true"} if path == "steer" else {name: TEXT, "chat": "true"}  # fmt: skip
        answer = live.get(f"{AT}/{path}.json", params=asked)
        assert answer.status_code == 400
        assert "has no chat template" in answer.json()["error"]
