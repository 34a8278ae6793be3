"""The pages on which a model acts: what they write and measure is the library's, who may ask for it, and when it ends."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import torch
from starlette.testclient import TestClient

from gemscope.activations.model import LanguageModel
from gemscope.atlas.reader import Atlas
from gemscope.atlas.units import units_of
from gemscope.cli import options
from gemscope.cli.main import main
from gemscope.edits import ways
from gemscope.edits.clamp import Ablate, Clamp
from gemscope.edits.steer import Project, Steer
from gemscope.errors import CorruptFile
from gemscope.reports.steer import steer
from served import ASKED, AT, BODY, HOSTILE, MODEL, PROMPT, SAE, STEER, as_json, here, planted, reader, told

# --- the steer view ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_library_writes(live: TestClient, folder: Path) -> None:
    found = live.get(f"{STEER}.json", params={**ASKED, "run": True}).json()
    with Atlas(folder) as atlas:
        units = units_of(atlas, MODEL, SAE)
        edits = [Steer(SAE, 5, units.max(5, 2)), Steer(SAE, 9, units.max(9, -1.5))]
        expected = steer(MODEL, PROMPT, edits, max_new_tokens=6, temperature=0.5, seed=3, atlas=atlas).to_dict()
        label = atlas[9].label
    (run,) = found["runs"]
    assert run == as_json({"name": "steered", **expected})
    assert run["pairs"][0]["default"]["text"] != run["pairs"][0]["steered"]["text"]
    assert [one["raw"] for one in found["features"]] == pytest.approx([units.max(5, 2).raw, units.max(9, -1.5).raw])
    assert [one["index"] for one in found["features"]] == ["5", "9"]
    assert run["labels"] == [None, label]
    assert f'at 1.res: <span class="label">{label}</span>' in live.post(STEER, data=ASKED).text
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
    assert as_json(expected["strengths"]) == [vars(strength)]
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
    other = re.findall(r"(\d+) in place of (\d+)", runs[1]["control"])
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
        ("5", "2max"), ("9", "-1.5max"), ("12", "0.5norm"),
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


def test_a_norm_that_the_atlas_does_not_say_is_measured_for_whoever_asks_first_and_kept(tmp_path: Path) -> None:
    folder = planted(tmp_path / "atlas")
    with reader(folder, models=here) as client:
        assert "× median norm" not in client.get(f"{AT}/5").text
        found = client.get(f"{STEER}/units.json", params={"feature": [5, 6]}).json()
        assert set(found["features"]) == {"5"}  # 6 never fired
        assert "× median norm" in client.get(f"{AT}/5").text
    with Atlas(folder) as atlas:
        rows = [[id_ for id_ in atlas.row(at) if id_ >= 0] for at in range(0, 2048, atlas.manifest.length)]
        lengths = torch.cat([MODEL.capture(row, ["1.res"])["1.res"].rows.norm(dim=-1) for row in rows])
        assert found["median_norm"] == pytest.approx(lengths.median().item())
        assert atlas.manifest.median_norm == found["median_norm"]
        share = atlas[5].max * float(SAE.direction(5).norm()) / found["median_norm"]
        assert found["features"]["5"] == pytest.approx({"max": atlas[5].max, "of_norm": share}, rel=1e-5)


def test_the_norm_that_an_atlas_says_stands_on_every_page_and_sets_no_model_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "atlas")
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "median_norm": 8.0}))
    with reader(folder, models=here) as client:
        with monkeypatch.context() as patch:
            patch.setattr(client.app.state.worker, "submit", lambda *_, **__: pytest.fail("the model was asked"))  # type: ignore[attr-defined]
            for page in (f"{AT}/5", f"{STEER}?feature=5"):
                assert "× median norm" in client.get(page).text
        with monkeypatch.context() as patch:
            patch.setattr(LanguageModel, "capture", lambda *_, **__: pytest.fail("the model was run"))
            found = client.get(f"{STEER}/units.json", params={"feature": 5}).json()
        with Atlas(folder) as atlas:
            share = atlas[5].max * float(SAE.direction(5).norm()) / 8
        assert found["median_norm"] == 8
        assert found["features"]["5"]["of_norm"] == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("norm", [0.0, -1.0, 1e300])
def test_a_norm_that_cannot_be_is_refused_with_the_atlas(norm: float, tmp_path: Path) -> None:
    folder = planted(tmp_path / "atlas")
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "median_norm": norm}))
    with pytest.raises(CorruptFile, match='field "median_norm" is'):
        Atlas(folder)


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ({"feature": 99}, 404, "no feature 99"),
        ({"feature": 6, "strength": "1max"}, 400, "feature 6 fires on none"),
        ({"feature": "x"}, 400, "expected a whole number"),
        ({"feature": [5, 5]}, 400, "named twice"),
        ({"feature": list(range(21))}, 400, '"feature" has length 21, expected a list of at most 20'),
        ({"strength": "nan"}, 400, "'nan' is no strength"),
        ({"strength": "inf"}, 400, "'inf' is no strength"),
        ({"strength": "2 apples"}, 400, "expected such as 2max, 0.5norm or 30 (raw)"),
        ({"strength": "1e300"}, 400, "expected a strength from -1,000,000"),
        ({"strength": "-2e6max"}, 400, "expected a strength from -1,000,000"),
        ({"how": "scale", "noise": True}, 400, "noise can only be added"),
        ({"factor": "-inf"}, 400, '"factor[0]" is "-inf", expected a number from -1,000 to 1,000'),
        ({"how": "melt"}, 400, '"how" is "melt", expected "ablate", "add", "at-least"'),
        ({"at": "nowhere"}, 400, '"at" is "nowhere", expected "all", "generated" or "prompt"'),
        ({"temperature": 2.5}, 400, "expected a number from 0 to 2"),
        ({"temperature": -0.1}, 400, "expected a number from 0 to 2"),
        ({"tokens": 0}, 400, "expected a whole number from 1 to 256"),
        ({"tokens": 257}, 400, "expected a whole number from 1 to 256"),
        ({"n": 9}, 400, "from 1 to 8"),
        ({"seed": 10**9}, 400, "from -100,000,000 to 100,000,000"),
        ({"prompt": "a" * 2049}, 400, "length 2,049, expected text of"),
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
    assert fields == {"feature": "5", "strength": "0.5norm", "seed": "16", "tokens": "40"}
    assert "<steer-panel" not in live.get(f"{AT}/6").text  # a dead one has no strength to be measured in


def test_frames_show_the_panel_where_their_address_asks_for_it(live: TestClient) -> None:
    assert "<steer-panel" in live.get(f"{AT}/5?embed=true&embedsteer=true").text
    assert "<steer-panel" not in live.get(f"{AT}/5?embed=true").text
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
