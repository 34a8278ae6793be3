"""gemscope feature and search: what they print, and where they say that pages lie."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemscope.app import running
from gemscope.app.server import Server, serve
from gemscope.atlas.reader import Atlas
from gemscope.cli.main import main
from served import AT, planted

TOKEN = "open-sesame"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return planted(tmp_path / "atlas")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's servers but this test's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime" / "gemscope"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder, live=False, port=0, block=False) as running_now:
        yield running_now


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def page_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.match(" *page ", line)]


def test_a_page_is_printed_in_the_order_in_which_a_person_reads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "feature", 3, "--atlas", folder)
    with Atlas(folder) as atlas:
        page = atlas[3]
    told = [
        f"feature 3 · {page.label}",
        "of tiny-model · 1-res-tiny",
        f"{page.count:,} of {page.tokens:,}",
        f"[[{page.strongest[0].tokens[page.strongest[0].peak]}]]",
        "half of its activations are below",
        "promotes",
        "suppresses",
        "nearest",
        "fires along",
        f"From {page.tokens:,} tokens of",
        "Next:",
    ]
    places = [out.index(one) for one in told]
    assert places == sorted(places)
    for near in page.neighbours[:5]:
        assert re.search(rf"^ +{near.feature} +{near.cosine:.2f}  ", out, re.MULTILINE)


def test_what_a_server_of_ours_shows_is_linked_while_it_runs(
    folder: Path, server: Server, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert page_lines(printed(capsys, "feature", 3, "--atlas", folder)) == [f"page         {server.url}{AT}/3"]
    assert not page_lines(printed(capsys, "feature", 3))  # another atlas
    assert list(runtime.glob("*.json"))
    server.close()
    assert not list(runtime.glob("*.json"))
    assert not page_lines(printed(capsys, "feature", 3, "--atlas", folder))


def test_a_terminal_that_knows_links_gets_them(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = printed(capsys, "feature", 3, "--atlas", folder)
    linked = dict(re.findall(r"\x1b\]8;[^;]*;([^\x1b]*)\x1b\\(?:\x1b\[[0-9;]*m)*([^\x1b]*)", out))
    with Atlas(folder) as atlas:
        near = atlas[3].neighbours[0].feature
    assert linked[f"{server.url}{AT}/{near}"] == str(near)
    assert linked[f"{server.url}{AT}/3"] == f"{server.url}{AT}/3"
    found = printed(capsys, "search", "--on", "river", "--atlas", folder)
    assert f"{server.url}{AT}/" in found


def test_a_token_is_written_nowhere_and_its_server_is_found_all_the_same(
    folder: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(folder, live=False, port=0, token=TOKEN, block=False) as server:
        assert page_lines(printed(capsys, "feature", 3, "--atlas", folder)) == [f"page         {server.url}{AT}/3"]
        (note,) = runtime.glob("*.json")
        assert TOKEN not in note.read_text()
        assert note.parent.stat().st_mode & 0o077 == 0


def test_a_server_that_ended_without_a_word_is_forgotten(
    folder: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Atlas(folder) as atlas:
        manifest = atlas.manifest
    served = {"model": "tiny-model", "source": "1-res-tiny", "contents": running.contents_of(manifest)}
    runtime.mkdir(parents=True)

    def note(url: str) -> Path:
        path = runtime / "note.json"
        path.write_text(json.dumps({"url": url, "atlases": [served]}))
        return path

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = note(f"http://127.0.0.1:{port}")
    assert not page_lines(printed(capsys, "feature", 3, "--atlas", folder))
    assert not ended.exists()
    # An address that is not this machine's is never asked, nor shown.
    note("http://example.org:80")
    assert not page_lines(printed(capsys, "feature", 3, "--atlas", folder))
    (runtime / "note.json").write_text("{")
    assert not page_lines(printed(capsys, "feature", 3, "--atlas", folder))


def test_another_program_behind_a_note_is_not_taken_for_ours(folder: Path, runtime: Path) -> None:
    import http.server
    import threading

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with Atlas(folder) as atlas, http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{other.server_port}"
        served = {"model": "m", "source": "s", "contents": running.contents_of(atlas.manifest)}
        runtime.mkdir(parents=True)
        (runtime / "note.json").write_text(json.dumps({"url": url, "atlases": [served]}))
        assert running.links_to(atlas.manifest) is None
        thread.join()


def test_a_server_runs_where_no_note_can_be_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.devnull)
    with serve(folder, live=False, port=0, block=False) as server:
        assert server.running
        assert not page_lines(printed(capsys, "feature", 3, "--atlas", folder))


def test_a_feature_that_neuronpedia_has_is_linked_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "manifest.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "neuronpedia_id": "gemma-2-2b/20-gemmascope-res-16k"}))
    out = printed(capsys, "feature", 3, "--atlas", folder)
    assert "Neuronpedia  https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/3\n" in out


def test_features_are_found_by_a_token_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "search", "--on", "river", "--atlas", folder, "--json"))
    assert found["labels"] == []
    with Atlas(folder) as atlas:
        token = atlas.tokens_like("river")[0][0]
        hits = atlas.by_token(token, limit=20)
    assert {hit.summary.feature for hit in hits} <= {one["feature"] for one in found["tokens"]}
    examples = [one["examples"] for one in found["tokens"]]
    assert examples == sorted(examples, reverse=True)
    out = printed(capsys, "search", "--on", "river", "--atlas", folder)
    assert "That fire on such a token" in out
    assert "Whose label says so" not in out
    with pytest.raises(SystemExit):
        main(["search", "sea", "--on", "river"])


# --- compare ----------------------------------------------------------------------------------------------------------


def test_two_features_are_compared_by_number_and_by_address(
    folder: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "compare", "3", "4", "--atlas", folder)
    assert out.startswith("3 · sea and words like it\n4 · ")
    assert page_lines(out) == [f"page         {server.url}/compare?a=tiny-model/1-res-tiny/3&b=tiny-model/1-res-tiny/4"]
    found = json.loads(printed(capsys, "compare", f"{folder}/3", f"{folder}/4", "--json"))
    assert (found["a"]["index"], found["b"]["index"]) == ("3", "4")
    other = planted(tmp_path / "other", source_id="1-res-other")
    out = printed(capsys, "compare", f"{folder}/3", f"{other}/4")
    assert "1-res-tiny/3 · " in out
    assert "1-res-other/4 · " in out


def test_two_saes_are_compared_by_their_atlases(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = planted(tmp_path / "other", source_id="1-res-other")
    out = printed(capsys, "compare", folder, other)
    assert re.search(r"^living +\d+ +\d+$", out, re.MULTILINE)
    assert "the weights are not at hand, and the atlases hold out no text in common" in " ".join(out.split())
    assert json.loads(printed(capsys, "compare", folder, other, "--json"))["matching"] is None


@pytest.mark.usefixtures("at_hand")
def test_two_texts_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    texts = "I went to the bank of the river.", "I went to the bank of England."
    out = printed(capsys, "compare", "--text", *texts, "-k", 3)
    assert "In the first text alone" in out
    assert "·river" in out
    found = json.loads(printed(capsys, "compare", "--text", *texts, "-k", 3, "--json"))
    assert "".join(found["one"]["tokens"]) == texts[0]
    assert "".join(found["one"]["tokens"][: found["same"]]) == "I went to the bank of"


@pytest.mark.parametrize(
    "words",
    [
        ["compare"],
        ["compare", "3"],
        ["compare", "3", "no/such/folder"],
        ["compare", "3", "4", "5"],
        ["compare", "one", "--text", "a", "b"],
        ["compare", "--text", "a"],
    ],
)
def test_what_cannot_be_compared_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "usage: gemscope compare" in capsys.readouterr().err
