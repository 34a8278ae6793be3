"""Tables of reports: the same cells in a terminal and in HTML, and hostile text harmless in both."""

from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gemscope.pages.blocks import bars, signed_bars
from gemscope.pages.plain import plain
from gemscope.pages.tables import Cell, Row, Table

HEADS = ("token", "value")
HOSTILE = "<script>alert(1)</script>[red]\"'&"


class Cells(HTMLParser):
    """The texts of a table's cells, row by row, and the tags that there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


def test_a_terminal_and_html_show_the_same_cells() -> None:
    table = Table(
        HEADS, [("cat", "1.5"), Row((HOSTILE, "12.25"), quiet=True, why="it's 'not' counted")], left=("token",)
    )
    lines = plain(table).splitlines()
    shown = Cells(table.html())
    assert shown.rows == [[*HEADS], ["cat", "1.5"], [HOSTILE, "12.25"]]
    assert shown.tags == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert [line.split() for line in lines] == [[*HEADS], ["cat", "1.5"], [HOSTILE, "12.25"]]
    # Figures end below one another, what is on the left begins there.
    assert {len(line) for line in lines} == {len(lines[0])}
    assert all(line.startswith(first) for line, (first, _) in zip(lines, shown.rows, strict=True))


def test_a_cell_may_say_more_in_html_than_in_a_terminal() -> None:
    table = Table(
        ("", "a"), [(Cell("cat (3)", html="<code>cat</code> <small>(3)</small>"), Cell("+1", "green", "<b>+1</b>"))]
    )
    assert plain(table).split("\n")[1].split() == ["cat", "(3)", "+1"]
    assert Cells(table.html()).tags >= {"code", "small", "b"}


def test_a_file_whose_policy_has_no_styles_gets_none() -> None:
    table = Table(HEADS, [("cat", "1.5")], left=("token",))
    assert "style=" in table.html()
    assert "style=" not in table.html(styled=False)
    assert "align='left'" in table.html(styled=False)


def test_figures_with_their_names_need_no_heads() -> None:
    assert plain(Table((), [("L0", "70.0"), ("dead", "1 %")], indent=2)).splitlines() == ["L0      70.0", "dead    1 %"]


@pytest.mark.parametrize("light", [False, True])
def test_the_largest_value_has_the_longest_bar(light: bool) -> None:
    fill = "░" if light else "█"
    found = bars([4.0, 2.0, 0.0, -1.0, float("inf"), float("nan")], [light] * 6)
    assert found[0] == found[4] == found[5] == fill * 12
    assert found[1] == fill * 6
    assert found[2] == found[3] == "·"
    assert signed_bars([-2.0, 1.0], [light] * 2) == [f"−{fill * 12}", f" {fill * 6}"]
    assert bars([0.5], [light], most=1.0) == [fill * 6]
    assert bars([0.0], [light]) == ["·"]


WORD = st.text(st.sampled_from("abc 1.Ω語é"), max_size=24)


@given(st.data(), st.integers(24, 120))
def test_nothing_is_cut_however_narrow_the_terminal(data: st.DataObject, width: int) -> None:
    columns = data.draw(st.integers(1, 5))
    heads = [f"head{n}" for n in range(columns)]
    rows = data.draw(st.lists(st.lists(WORD, min_size=columns, max_size=columns), min_size=1, max_size=4))
    table = Table(
        heads, rows, left=heads, wraps=data.draw(st.sets(st.sampled_from(heads))), gap=data.draw(st.integers(1, 3))
    )
    shown = plain(table, width)
    assert "…" not in shown
    assert all(cell_len(line) <= width for line in shown.splitlines())
    # Words are all there, in columns or below one another; one as long as a line may be broken.
    letters = Counter(shown.replace(" ", "").replace("\n", ""))
    for row in rows:
        wanted = Counter("".join("".join(row).split()))
        assert not wanted - letters


def test_what_does_not_fit_side_by_side_stands_below() -> None:
    table = Table(
        ("token", "activation", "", "what it stands for"),
        [("cat", "1.5", "x", "a word"), ("", "2.5", "", "b")],
        wraps=("what it stands for",),
    )
    assert plain(table, 40).split("\n")[1].split() == ["cat", "1.5", "x", "a", "word"]
    assert plain(table, 30).split("\n") == [
        "cat",
        "  activation 1.5 · x · what it",
        "  stands for: a word",
        "  activation 2.5 · what it",
        "  stands for: b",
    ]
