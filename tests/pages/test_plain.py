"""Reports as text: what `str` gives is the same wherever it is asked for."""

import pytest
import rich.console
from rich.table import Table

from gemscope.pages.plain import Shown


class Report(Shown):
    def __rich__(self) -> Table:
        table = Table("feature", "label")
        table.add_row("8029", "money [bold]")
        return table


def test_in_a_notebook_a_report_s_text_is_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich, which finds itself in Jupyter, shows what it is told to write into a file."""
    elsewhere = str(Report())
    assert "8029" in elsewhere
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert str(Report()) == elsewhere
    assert not capsys.readouterr().out
