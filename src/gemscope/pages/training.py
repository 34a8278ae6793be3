"""A training run as one HTML file: its figures, its curves and its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from markupsafe import Markup

from gemscope.features.histogram import Histogram
from gemscope.pages.charts.lines import Line, lines
from gemscope.pages.links import NoLinks
from gemscope.pages.render import render
from gemscope.pages.standalone import document
from gemscope.training.config import TrainConfig

MOST = 80
"""Points of a line: more are no clearer."""


@runtime_checkable
class Report(Protocol):
    """What is read of a report here; the template reads the rest."""

    @property
    def folder(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def best(self) -> tuple[str, Mapping[str, Any]]: ...
    @property
    def lines(self) -> Sequence[Mapping[str, float]]: ...
    @property
    def times(self) -> Sequence[Mapping[str, float]]: ...


def training_document(report: Report) -> str:
    """The whole file."""
    whose, figures = report.best
    body = render(
        "training.html",
        links=NoLinks(),
        report=report,
        plots=plots(report),
        whose=whose,
        densities=Histogram(**figures["densities"]),
        recipe=[(name, _shown(value)) for name, value in report.config.items()],
    )
    return document(body, title=f"Training of {report.folder.name}")


def plots(report: Report) -> list[tuple[str, str, Markup]]:
    """Each with its heading and what it shows, in words; those without data are left out."""
    curves = {key: _curve(report.lines, key) for key in dict.fromkeys(key for line in report.lines for key in line)}
    if auxiliary := TrainConfig.of(dict(report.config)).revival:
        curves["auxiliary"] = [(x, auxiliary * y) for x, y in curves.get("auxiliary", [])]
    at = {line["step"]: line["rows"] for line in report.lines}
    curves["rows_per_second"] = _curve(
        [{**line, "rows": at[line["step"]]} for line in report.times if line["step"] in at], "rows_per_second"
    )
    drawn = []
    for heading, told, up, logarithmic, keys in _PLOTS:
        known = [Line(name, curves[key]) for key, name in keys if any(y for _, y in curves.get(key, ()))]
        if chart := lines(known, title=heading, across="rows read", up=up, logarithmic=logarithmic):
            drawn.append((heading, told, chart))
    return drawn


_PLOTS = (
    (
        "Loss and its parts",
        "error: mean ‖y − ŷ‖² of scaled rows",
        "loss",
        True,
        (("loss", "loss"), ("error", "error"), ("penalty", "penalty"), ("auxiliary", "auxiliary")),
    ),
    (
        "Features per token",
        "L0 of a batch, what it aims at, and of held-out rows",
        "L0",
        True,
        (("l0", "batch"), ("target_l0", "target"), ("held_out_l0", "held out")),
    ),
    (
        "Unexplained variance",
        "of a batch and of held-out rows",
        "FVU",
        True,
        (("fvu", "batch"), ("held_out_fvu", "held out")),
    ),
    (
        "Features that fire never or always",
        "silent: not within the recipe's patience; dense: on over a tenth of a batch; the others on held-out rows",
        "share",
        False,
        (("silent", "silent"), ("dense", "dense"), ("held_out_dead", "dead"), ("held_out_dense", "dense, held out")),
    ),
    (
        "Thresholds",
        "median θ, and ε, the width of the window that their gradient comes from",
        "of scaled rows",
        True,
        (("median_threshold", "θ"), ("bandwidth", "ε")),
    ),
    (
        "Window occupancy",
        "pre-activations within ε/2 of their threshold: a gradient comes from these alone",
        "entries per row",
        True,
        (("window", "in the window"), ("l0", "active")),
    ),
    (
        "Spread of pre-activations",
        "what a feature would write without a gate, where rows have norm 1; above 1 the encoder runs away",
        "spread",
        False,
        (("spread", "spread"),),
    ),
    (
        "Gradient",
        "norm of the weights' gradient before it is clipped, and the share of steps so far that were",
        "norm",
        True,
        (("grad_norm", "norm"), ("clipped", "share clipped")),
    ),
    ("Learning rate", "of the weights", "rate", False, (("lr", "lr"),)),
    ("Speed", "while this was written", "rows per second", False, (("rows_per_second", "rows"),)),
)
"""Heading, explanation, upright axis, whether that is logarithmic, and the log's keys with their names."""


def _curve(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    points = [(line["rows"], line[key]) for line in log if key in line]
    stride = -(-len(points) // MOST) or 1
    return points[::-stride][::-1]  # the last one always


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)
