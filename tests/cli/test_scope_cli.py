"""`gemscope scope`: a plan, a scope made by one process or several, and scores for what has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gemscope.activations import load
from gemscope.cli import workers
from gemscope.cli.main import main
from gemscope.world import World
from scopes import TEXTS, TWO, contents, model

pytestmark = pytest.mark.filterwarnings("ignore:.*(aimed at|run away)")
ROOM = ["--disk", "1GB", "--memory", "8GB"]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """MODEL, CORPUS and RECIPE."""
    monkeypatch.setattr(load, "load_model", lambda name, **options: model())
    (tmp_path / "text").mkdir()
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "text" / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "two.toml").write_text(TWO)
    return ["tiny", str(tmp_path / "text"), str(tmp_path / "two.toml"), *ROOM]


def test_a_scope_is_made_in_one_command_which_says_first_what_it_takes(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "scope"
    assert main(["scope", "make", *given, "-o", str(to), "--price", "3"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("2 SAEs of 3 sites in 1 pass of the model over ")
    assert "dollars, by a short spell measured now" in told.err
    assert told.out.startswith(f"2 SAEs in {to}\n")
    assert "1.transcoder → 1.mlp" in told.out

    assert main(["scope", "make", *given, "-o", str(to), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["site"] for one in said["saes"]] == ["1.transcoder", "1.res"]
    assert all(one["score"]["delta_loss"] is not None for one in said["saes"])
    assert said["failed"] == []


def test_a_plan_is_said_and_nothing_is_made(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "scope"
    assert main(["scope", "plan", *given, "-o", str(to), "--json", "--workers", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["sites"] for one in said["passes"]] == [["1.transcoder", "1.mlp", "1.res"]]
    assert said["wall_hours"] == pytest.approx(said["hours"]["all"] / 2)
    assert said["dollars"] is None
    assert not list(tmp_path.glob("scope*"))


def test_scores_are_made_of_what_has_none_on_text_that_nothing_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "scope"
    assert main(["scope", "make", *given, "-o", str(to)]) == 0
    [res, transcoder] = sorted(to.rglob("score.json"))
    there, other = json.loads(res.read_text()), transcoder.stat().st_mtime_ns
    res.unlink()
    capsys.readouterr()
    options = ["--tokens", "200", "--loss-tokens", "60", "--length", "32"]
    assert main(["scope", "score", str(to), given[1], *options, "--json"]) == 0
    assert all(one["score"] for one in json.loads(capsys.readouterr().out)["saes"])
    assert json.loads(res.read_text()) == there
    assert transcoder.stat().st_mtime_ns == other
    assert not list(tmp_path.glob("scope.partial"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--disk", "lots"], "'lots' is no size: expected a number of bytes, such as 50GB"),
        (["--disk", "10kB"], "alone takes"),
        (["--memory", "1MB"], "training 1."),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], said: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scope", "make", *given, "-o", str(tmp_path / "scope"), *words]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("gemscope: ")
    assert told.count("\n") == 1


def test_several_processes_here_make_the_same_scope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second is a process of its own, which loads the model from where it lies."""
    model().hf.save_pretrained(tmp_path / "model")
    model().tokenizer.save_pretrained(tmp_path / "model")
    given: list[Any] = [tmp_path / "model", tmp_path / "text.jsonl", tmp_path / "two.toml", *ROOM]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    (tmp_path / "two.toml").write_text(TWO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")]))
    for folder, words in (("one", []), ("two", ["--workers", "2"])):
        assert main(["scope", "make", *map(str, given), "-o", str(tmp_path / folder), *words]) == 0, capfd.readouterr()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not list(tmp_path.glob("*.partial"))


def test_workers_and_their_threads_are_chosen_where_nobody_says_how_many(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two SAEs: two workers of three cores; in a world that others made, none beside it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr("gemscope.scope.making.cores", lambda: 3)
    monkeypatch.setattr("gemscope.activations.suited.cores", lambda: 4)
    before, threads = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    started: list[World] = []

    def dies_at_once(argv: Sequence[str], world: World) -> subprocess.Popen[bytes]:
        started.append(world)
        return subprocess.Popen([sys.executable, "-S", "-c", ""])

    monkeypatch.setattr(workers, "_started", dies_at_once)
    assert main(["scope", "plan", *given, "-o", str(tmp_path / "scope")]) == 0
    assert "  2 workers, one for each SAE (--workers)" in capsys.readouterr().out
    assert threads == [2]
    assert main(["scope", "make", *given, "-o", str(tmp_path / "scope")]) == 0
    assert started == [World(1, 2)]
    assert threads == [2, 2]
    assert "  2 workers, one for each SAE (--workers)" in capsys.readouterr().err
    assert main(["scope", "make", *given, "-o", str(tmp_path / "one"), "--workers", "1"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "scope")
    monkeypatch.setenv("GEMSCOPE_SHARE", "0/3")
    assert main(["scope", "make", *given, "-o", str(tmp_path / "shared")]) == 0
    assert started == [World(1, 2)]
    assert torch.get_num_threads() == before
