"""Line charts: what they show, to those who see them and to those who do not."""

import math
import xml.etree.ElementTree as ET

from gemscope.pages.charts.lines import Line, lines


def _drawn(*data: Line, **options: object) -> ET.Element:
    svg = lines(data, title="t", across="strength", up="logit", **options)  # type: ignore[arg-type]
    return ET.fromstring(str(svg))


def _paths(root: ET.Element) -> list[str]:
    groups = [group for group in root.iter("g") if group.get("class", "").startswith("line ")]
    return [path.get("d", "") for group in groups for path in group.iter("path")]


def _points(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in path[1:].split("L")]  # type: ignore[misc]


def test_points_lie_where_their_numbers_say() -> None:
    (path,) = _paths(_drawn(Line("a", [(0, 1.0), (1, 2.0), (2, 3.0)])))
    (x0, y0), (x1, y1), (x2, y2) = _points(path)
    assert x1 - x0 == x2 - x1 > 0
    assert math.isclose(y0 - y1, y1 - y2, abs_tol=0.11)
    assert y2 < y0  # up is up


def test_a_logarithmic_axis_makes_equal_factors_equal_steps() -> None:
    (path,) = _paths(_drawn(Line("a", [(0, 1.0), (1, 10.0), (2, 100.0)]), logarithmic=True))
    _, y0, y1, y2 = (0.0, *(y for _, y in _points(path)))
    assert math.isclose(y0 - y1, y1 - y2, abs_tol=0.11)


def test_points_without_a_height_are_left_out_and_a_chart_without_points_is_nothing() -> None:
    (path,) = _paths(_drawn(Line("a", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])))
    assert len(_points(path)) == 2
    (path,) = _paths(_drawn(Line("a", [(0, 1.0), (1, 0.0), (2, 2.0)]), logarithmic=True))
    assert len(_points(path)) == 2
    assert lines([Line("a", [(0, math.nan)])], title="t", across="x", up="y") == ""
    assert lines([], title="t", across="x", up="y") == ""


def test_one_point_alone_and_a_flat_line_are_drawn() -> None:
    assert _paths(_drawn(Line("a", [(1, 5.0)])))
    assert _paths(_drawn(Line("a", [(0, 5.0), (1, 5.0)])))


def test_lines_differ_in_more_than_colour_and_are_told_in_words() -> None:
    root = _drawn(Line("feature", [(0, 1.0), (1, 2.0)]), Line("control", [(0, 1.0), (1, 1.5)]))
    groups = [group for group in root.iter("g") if group.get("class", "").startswith("line ")]
    dashes = {group.get("class"): group.find("path").get("stroke-dasharray") for group in groups}  # type: ignore[union-attr]
    assert dashes["line line-0"] != dashes["line line-1"]
    description = root.findtext("desc") or ""
    assert "feature: 1 at 0, 2 at 1" in description
    assert "control: 1 at 0, 1.5 at 1" in description


def test_hostile_names_stay_text() -> None:
    root = _drawn(Line("<script>alert(1)</script>", [(0, 1.0), (1, 2.0)]), Line("b", [(0, 0.0)]))
    assert not list(root.iter("script"))
