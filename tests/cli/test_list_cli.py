"""gemscope list: the same lists that the browser shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlases import planted_atlas
from gemscope.atlas.notes.kept import from_json
from gemscope.atlas.notes.lists import Lists
from gemscope.cli.main import main
from html_tree import parse


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMSCOPE_DATA", str(tmp_path / "data"))


@pytest.fixture
def atlas(tmp_path: Path) -> list[str]:
    planted_atlas(tmp_path / "tiny.atlas").close()
    return ["--atlas", str(tmp_path / "tiny.atlas")]


def test_features_are_kept_shown_and_taken_out(atlas: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "show"]) == 0
    assert "no list yet" in capsys.readouterr().out
    assert main(["list", "add", "Seas", "3", "9", *atlas, "--note", "why"]) == 0
    assert "tiny-model@1-res-tiny:9" in capsys.readouterr().out
    assert main(["list", "add", "seas", "5", *atlas, "--json"]) == 0
    assert [one["index"] for one in json.loads(capsys.readouterr().out)["features"]] == [3, 9, 5]
    assert main(["list", "remove", "seas", "9", *atlas]) == 0
    assert [one.index for one in Lists()["seas"]] == [3, 5]
    capsys.readouterr()
    assert main(["list", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lists"] == [json.loads(Lists()["seas"].to_json())]
    assert main(["list", "show"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["Seas", "2"]


def test_a_list_goes_out_and_comes_in(atlas: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "add", "Seas", "3", "9", *atlas, "--note", "why <so>"])
    out, page = tmp_path / "seas.json", tmp_path / "seas.html"
    assert main(["list", "export", "seas", "-o", str(out)]) == 0
    assert main(["list", "export", "seas", "-o", str(page), *atlas]) == 0
    assert from_json(out.read_text()).features == Lists()["seas"].features
    tree = parse(page.read_text())
    assert len(tree.all("article")) == 2
    assert "why <so>" in tree.one("ol", class_="found").text
    assert main(["list", "import", str(out), "--name", "Again"]) == 0
    assert Lists()["again"].features == Lists()["seas"].features
    capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        ["show", "none"],
        ["add", "seas", "4000"],
        ["remove", "none", "3"],
        ["export", "none", "-o", "x.json"],
        ["import", "none"],
    ],
)
def test_a_mistake_is_one_line(words: list[str], atlas: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = atlas if words[0] in ("add", "remove") else []
    assert main(["list", *words, *asked]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not Lists().folder.exists()
