"""What sparse probing found: how well a few features tell classes of text apart, beside the raw activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gemscope.pages.charts.intervals import Series, intervals
from gemscope.pages.labels import STANDS, short_label
from gemscope.pages.numbers import figure
from gemscope.pages.plain import Shown, harmless
from gemscope.pages.standalone import document
from gemscope.pages.tables import Cell, Table
from gemscope.text.printable import clipped, readable
from gemscope.text.rows import passed_over

if TYPE_CHECKING:
    from rich.console import RenderableType


_NAMED = "What the features stand for, and where each is more active:"
ROUNDS = 2_000
"""Steps after which a fit is given up as not converged."""


@dataclass(frozen=True, kw_only=True)
class Class:
    """A label and how many texts have it."""

    label: str
    train: int
    held_out: int


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A dimension that a probe reads."""

    dimension: int
    """The feature, or the number of the raw dimension."""
    difference: float
    """Mean over the class's training texts, less that over all others'."""
    weight: float
    """The probe's coefficient, for the dimension divided by its standard deviation."""
    label: str | None = None
    """What the feature stands for, by the atlas that was at hand."""


@dataclass(frozen=True, kw_only=True)
class OneVsRest:
    """A probe for one class against all others."""

    label: str
    chosen: tuple[Chosen, ...]
    """Strongest difference first; empty where it reads all dimensions."""
    accuracy: float
    balanced: float
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What `k` dimensions of one kind achieve on held-out texts."""

    basis: str
    """`features`, or `raw`: the activations that the SAE reads."""
    k: int | None
    """Dimensions that each class's probe reads; None: all."""
    accuracy: float
    low: float
    high: float
    """The 95 % interval of the accuracy (Wilson's), for other texts of the same kind and the same probe."""
    balanced: float
    """Mean over classes of the share of their texts that is recognised."""
    probes: tuple[OneVsRest, ...]
    """One where there are two classes (for the second), else one for each: the class whose probe says most is taken."""

    @property
    def converged(self) -> bool:
        """Whether every fit came to an end by itself."""
        return all(probe.converged for probe in self.probes)


@dataclass(frozen=True, kw_only=True)
class Probe(Shown):
    """What `sparse_probe` found. `str` gives a table, a notebook adds a chart, `to_dict` gives what `--json` prints.

    Activations are means over the counted tokens of a text. Dimensions are chosen by the size of the difference of
    means between a class and the rest, on training texts alone; the probe is scikit-learn's LogisticRegression (L2,
    C = 1) on dimensions standardised by the training texts. As in SAEBench (sparse probing), but for the standardising.
    """

    model: str
    sae: str
    site: str
    """Where both kinds of activations are read."""
    dataset: str
    classes: tuple[Class, ...]
    rows: tuple[Fit, ...]
    majority: float
    """Held-out accuracy of always saying the class that most training texts have."""
    tokens: int
    """Counted tokens that the means are over."""
    length: int
    """Tokens of a text that are read at most."""
    cut: int
    """Texts that are longer."""
    passed: Mapping[str, int]
    """Rows of the file that had no text, by reason (`text.rows.PASSED`)."""
    skipped: int
    """Texts without a token that counts."""
    repeated: int
    """Texts that stood there more than once: their copies were left out."""
    left_out: int
    """Texts beyond `limit`."""
    seed: int
    """Of the split, and of which texts are taken where there are more than `limit`."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    @property
    def train(self) -> int:
        """Texts learnt from."""
        return sum(one.train for one in self.classes)

    @property
    def held_out(self) -> int:
        """Texts tested on."""
        return sum(one.held_out for one in self.classes)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {
            "train": self.train,
            "held_out": self.held_out,
            "interval": "Wilson, 95 %",
            "converged": all(row.converged for row in self.rows),
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines: list[RenderableType] = [Text(self._title(), style="bold"), Text(self._question()), Text()]
        lines += [self._accuracies()]
        if len(self.classes) > 2:
            lines += [Text(), Text("Each class against the rest, by its one feature:"), self._by_class()]
        if self.named:
            lines += [Text(), Text(_NAMED), self._features()]
        return Group(*lines, Text(), *(Text(line) for line in self._summary()))

    def _repr_html_(self) -> str:
        return f"<div>{self._html()}</div>"

    def to_html(self) -> str:
        """One HTML file with the table and the chart; nothing in it is fetched."""
        title = f"Probe: {_shown(self.dataset)}"
        return document(f'<article class="report"><h1>{harmless(title)}</h1>{self._html()}</article>', title=title)

    def _html(self) -> str:
        parts = [self._accuracies().html(styled=False)]
        if len(self.classes) > 2:
            by_class = self._by_class().html(styled=False)
            parts.append(f"<p>Each class against the rest, by its one feature:</p>{by_class}")
        if self.named:
            parts.append(f"<p>{_NAMED}</p>{self._features().html(styled=False)}")
        lines = "".join(f"<li>{harmless(line)}</li>" for line in self._summary())
        return (
            f"<p><b>{harmless(self._title())}</b><br>{harmless(self._question())}</p>{self.chart()}"
            f"{''.join(parts)}<ul>{lines}</ul>"
        )

    def chart(self) -> str:
        """Held-out accuracy against k, as SVG."""
        series = [
            Series(name, {_many(row.k): (row.accuracy, row.low, row.high) for row in self.rows if row.basis == basis})
            for basis, name in (("features", "SAE features"), ("raw", "raw dimensions"))
        ]
        line = ("most frequent class", self.majority)
        title = f"Held-out accuracy of k-sparse probes on {_shown(self.dataset)}"
        return str(intervals(series, title=title, across="k", up="held-out accuracy", line=line))

    def _title(self) -> str:
        return f"{self.model} at {self.site}, read through {self.sae}"

    def _question(self) -> str:
        most = 12
        names = ", ".join(_shown(one.label) for one in self.classes[:most])
        names += f" and {len(self.classes) - most} more" if len(self.classes) > most else ""
        return f"Which of {len(self.classes)} classes is a text of {_shown(self.dataset)}: {names}?"

    def _accuracies(self) -> Table:
        two = len(self.classes) == 2
        head = ["probe reads", "held-out\naccuracy", "95 % interval", "balanced"] + ["chosen"] * two
        body = []
        for row in self.rows:
            name = "SAE feature" if row.basis == "features" else "raw dimension"
            reads = f"all {name}s" if row.k is None else f"{row.k} {name}{'s' if row.k > 1 else ''}"
            late = "" if row.converged else " (not converged)"
            cells = [reads + late, f"{row.accuracy:.3f}", f"{row.low:.3f} to {row.high:.3f}", f"{row.balanced:.3f}"]
            body.append(cells + [_chosen(row.probes[0].chosen)] * two)
        equal = 1 / len(self.classes)
        body.append(["the most frequent class", f"{self.majority:.3f}", "", f"{equal:.3f}"] + [""] * two)
        return Table(head, body, left=head, wraps=head[-1:])

    def _by_class(self) -> Table:
        first = next(row for row in self.rows if row.basis == "features")
        body: list[list[Cell | str]] = [
            [
                _shown(probe.label),
                f"{one.train} + {one.held_out}",
                _chosen(probe.chosen[:1]),
                f"{probe.accuracy:.3f}",
                f"{probe.balanced:.3f}",
            ]
            for one, probe in zip(self.classes, first.probes, strict=True)
        ]
        reads = "its feature" if first.k == 1 else f"first of its {first.k}"
        head = ["class", "train +\nheld out", reads, "accuracy", "balanced"]
        return Table(head, body, left=head)

    def _features(self) -> Table:
        """Of two classes those of the probe that reads most, of several the strongest of each."""
        head = ["feature", "more active in", "by", STANDS]
        body: list[list[Cell | str]] = [
            [
                str(one.dimension),
                self._where(probe, one),
                figure(abs(one.difference)),
                short_label(one.label),
            ]
            for probe in self._widest.probes
            for one in probe.chosen[: 1 if len(self.classes) > 2 else None]
        ]
        return Table(head, body, left=(head[1], head[3]), wraps=head[3:])

    def _where(self, probe: OneVsRest, one: Chosen) -> str:
        if one.difference >= 0:
            return _shown(probe.label)
        return f"others than {_shown(probe.label)}" if len(self.classes) > 2 else _shown(self.classes[0].label)

    @property
    def _widest(self) -> Fit:
        return [row for row in self.rows if row.basis == "features"][-1]

    @property
    def features(self) -> tuple[int, ...]:
        """All that the probes read, the strongest of each class first."""
        chosen = [probe.chosen for row in self.rows if row.basis == "features" for probe in row.probes]
        ranked = sorted((place, one.dimension) for each in chosen for place, one in enumerate(each))
        return tuple(dict.fromkeys(feature for _, feature in ranked))

    @property
    def named(self) -> bool:
        """Whether any of them has a label here."""
        return any(one.label for row in self.rows for probe in row.probes for one in probe.chosen)

    def _summary(self) -> Iterator[str]:
        yield (
            f"{self.train:,} texts to learn from, {self.held_out:,} held out (split by class, seed {self.seed}); means "
            f"over {self.tokens:,} counted tokens, the first {self.length} of each text"
        )
        if len(self.classes) == 2:
            yield (
                f"Chosen by the difference of training means: + is more active in {_shown(self.classes[1].label)}, "
                f"− in {_shown(self.classes[0].label)}"
            )
        for count, what in (
            (self.cut, "longer than that and cut"),
            (self.skipped, "without a token that counts and passed over"),
            (self.repeated, "there before and passed over"),
            (self.left_out, "beyond the limit and passed over"),
        ):
            if count:
                yield f"{count:,} {'text was' if count == 1 else 'texts were'} {what}"
        if told := passed_over(self.passed):
            yield told
        if self.computed:
            yield f"Computed in {self.computed}"
        if not all(row.converged for row in self.rows):
            yield f"Not converged: a fit was stopped after {ROUNDS:,} steps, its accuracy is a lower bound"


def _many(k: int | None) -> str:
    return "all" if k is None else str(k)


def _shown(text: str) -> str:
    return readable(clipped(text, 60))


def _chosen(chosen: Sequence[Chosen]) -> str:
    most = 5
    more = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(f"{one.dimension} ({'+' if one.difference >= 0 else '−'})" for one in chosen[:most]) + more
