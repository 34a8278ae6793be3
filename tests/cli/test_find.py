"""gemscope catalog: addresses come whole, whatever prints them."""

import os
import sys

import pytest

from gemscope.cli.main import main
from gemscope.features.catalog import catalog


def test_a_pipe_gets_rows_with_tabs_and_what_is_said_beside_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--offline", "--model", "gemma-2-9b", "--limit", "0"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines()]
    found = catalog("gemma-2-9b", online=False)
    assert rows[0] == ["address", "model", "site", "width", "L0", "Neuronpedia"]
    assert [row[0] for row in rows[1:]] == [entry.address for entry in found]
    assert {len(row) for row in rows} == {6}
    assert "Next: what does it see in a text?  gemscope look google/gemma-2-9b" in err


@pytest.mark.parametrize("columns", [20, 80, 120, 200])
def test_a_terminal_gets_whole_addresses_however_narrow(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    assert main(["catalog", "--offline", "--canonical", "--limit", "30"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    shown = catalog(canonical=True, online=False)[:30]
    lines = out.splitlines()
    assert all(any(line.split()[:1] == [entry.address] for line in lines) for entry in shown)
    if columns == 200:
        assert lines[0].split() == ["address", "model", "site", "width", "L0", "Neuronpedia"]
    else:  # below each other: no line is wider than what it has to say
        assert lines[0] == shown[0].address


def test_what_cannot_be_opened_is_marked_and_never_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--offline", "--model", "gpt2-small", "--width", "24k", "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split("\t")[2] == "(not opened here)"
    assert main(["catalog", "--offline", "--model", "gpt2-small", "--width", "24k", "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split("\t")[0] in err
