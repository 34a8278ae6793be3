"""What the shell prints fits the terminal, and what it pipes is for other programs."""

from __future__ import annotations

import importlib
import re
import sys
from functools import partial
from typing import Any

import pytest
from rich.cells import cell_len

import gemscope as gs
from gemscope.atlas.bundled import BUNDLED
from gemscope.cli.main import main

TEXT = "The patient was given medicine for the fever, and it was a very long text"
QUICK = ["--max-new-tokens", "4", "-n", "1"]
COMMANDS = {
    "look": ["look", TEXT],
    "check": ["check", "--tokens", "150"],
    "attribute": ["attribute", TEXT, "-k", "4"],
    "steer": ["steer", "2852=2max", "263=1max", "I live in", *QUICK],
    "sweep": ["steer", "2852=200max", "I live in", "--sweep", "0,200", "--random-feature", *QUICK],
    "probe": ["probe", "sample", "--limit", "60", "--length", "8"],
    "probe-two": ["probe", "sample", "--limit", "40", "--length", "8", "--labels", "sqlite-docs,python-docs"],
    "effect": ["effect", "--features", "263,8029", "--tokens", "8", "--length", "6"],
    "feature": ["feature", "263", "5", "455"],
    "search": ["search", "money"],
    "search-on": ["search", "--on", "money"],
    "search-text": ["search", "--text", TEXT],
    "compare": ["compare", "8029", "263"],
    "compare-texts": ["compare", "--text", "the bank of the river is wet", "the bank of England is rich", "-k", "3"],
    "catalog": ["catalog", "--offline", "--limit", "3"],
    "info": ["info", "smollm2"],
}
LINES = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\\\")
"""Colours and links."""


def shown(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What a terminal of so many columns is sent, without colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    return LINES.sub("", capsys.readouterr().out).splitlines()


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, str], Any]:
    """By command and function."""
    return {}


@pytest.fixture
def found_once(command: str, known: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command finds is the same however wide the terminal is."""
    for module, name in (
        ("look", "look"),
        ("dosing", "dose"),
        ("attribute", "attribute"),
        ("text_pair", "compare_texts"),
    ):
        place = importlib.import_module(f"gemscope.reports.{module}")
        monkeypatch.setattr(place, name, partial(_once, known, (command, name), getattr(place, name)))


def _once(known: dict[tuple[str, str], Any], key: tuple[str, str], find: Any, *given: Any, **options: Any) -> Any:
    if key not in known:
        known[key] = find(*given, **options)
    return known[key]


@pytest.mark.usefixtures("at_hand", "found_once")
@pytest.mark.parametrize(
    ("command", "columns"),
    [
        *((name, 80) for name in COMMANDS),
        *(
            (name, wide)
            for name in ("look", "sweep", "feature", "search-on", "compare", "compare-texts")
            for wide in (60, 160)
        ),
    ],
)
def test_no_line_is_longer_than_the_terminal_is_wide(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.startswith("probe"):
        pytest.importorskip("sklearn")
    found = shown(COMMANDS[command], columns, monkeypatch, capsys)
    long = [line for line in found if cell_len(line) > columns]
    # A command to go on with, a digest and an address stay whole, to be copied.
    assert all(line.lstrip().startswith(("gemscope ", "digest ", "google/")) for line in long)
    # A label may be shortened, a figure or a head never.
    assert not [line for line in found if re.search(r"\d…|\w{2,}…\s+\w+…", line)]


@pytest.mark.usefixtures("at_hand", "found_once")
@pytest.mark.parametrize(
    "command", ["look", "steer", "sweep", "attribute", "feature", "search", "search-on", "compare"]
)
def test_a_pipe_gets_neither_colours_nor_bars_nor_boxes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS[command]) == 0
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert not re.search("[─-▟━┃│█░]", found)
    assert not any(line != line.rstrip() for line in found.splitlines())


@pytest.mark.usefixtures("at_hand")
def test_without_colours_figures_say_what_colours_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["steer", "2852=4max", "I live in", *QUICK]) == 0
    found = capsys.readouterr().out
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]", found)
    assert re.search(r"\[[+-]\d+\.\d\]", found)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_feature_shows_the_token_it_fires_on_however_narrow(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shown(["feature", "263"], columns, monkeypatch, capsys)
    with gs.Atlas(BUNDLED) as atlas:
        page = atlas[263]
        examples = [line for line in found if "[[" in line]
        assert len(examples) == 8
        for line, one in zip(examples, page.strongest, strict=False):
            assert f"[[{one.tokens[one.peak]}]]" in line
            before, after = re.split(r"\[\[.*\]\]", re.sub(r"^ +[\d.]+  ", "", line))
            text = "".join(one.tokens).replace("\n", "↵")
            assert before.strip() in text
            assert after.strip() in text
        for near in page.neighbours[:3]:
            assert any(str(near.feature) in line for line in found)
    assert "Next: what is nearest to it?" in "\n".join(found)
