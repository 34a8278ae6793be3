"""How well a few features tell classes of text apart, beside the activations that the SAE reads: k-sparse probing.

Where labelled text comes from, `text/labelled.py` knows; the classifier is scikit-learn's.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemscope.activations.model import LanguageModel
from gemscope.errors import EmptyText, InputError, MissingDependency
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.pages.charts.intervals import Series, intervals
from gemscope.pages.plain import plain
from gemscope.pages.standalone import document
from gemscope.progress import Progress, silent
from gemscope.text.corpus import passed_over
from gemscope.text.labelled import Dataset, Labelled, labelled
from gemscope.text.printable import clipped, readable
from gemscope.text.tokens import Tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

Array = NDArray[Any]

LEAST = 4
"""Texts that a class must have: some to learn from, some to test on."""
_Z = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""
_ROUNDS = 2_000
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
class Probe:
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
    """Rows of the file that had no text, by reason (`text.corpus.PASSED`)."""
    skipped: int
    """Texts without a token that counts."""
    repeated: int
    """Texts that stood there more than once: their copies were left out."""
    left_out: int
    """Texts beyond `limit`."""
    seed: int
    """Of the split, and of which texts are taken where there are more than `limit`."""

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
        lines += [_table(*self._accuracies())]
        if len(self.classes) > 2:
            lines += [Text(), Text("Each class against the rest, by its one feature:"), _table(*self._by_class())]
        return Group(*lines, Text(), *(Text(line) for line in self._summary()))

    def __str__(self) -> str:
        return plain(self)

    def _repr_html_(self) -> str:
        return f"<div>{self._html()}</div>"

    def to_html(self) -> str:
        """One HTML file with the table and the chart; nothing in it is fetched."""
        return document(self._html(), title=f"Probe: {_shown(self.dataset)}")

    def _html(self) -> str:
        parts = [_html_table(*self._accuracies())]
        if len(self.classes) > 2:
            parts += ["<p>Each class against the rest, by its one feature:</p>", _html_table(*self._by_class())]
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self._summary())
        return (
            f"<p><b>{html.escape(self._title())}</b><br>{html.escape(self._question())}</p>{self.chart()}"
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

    def _accuracies(self) -> tuple[list[str], list[list[str]]]:
        two = len(self.classes) == 2
        head = ["probe reads", "held-out accuracy", "95 % interval", "balanced"] + ["chosen"] * two
        body = []
        for row in self.rows:
            name = "SAE feature" if row.basis == "features" else "raw dimension"
            reads = f"all {name}s" if row.k is None else f"{row.k} {name}{'s' if row.k > 1 else ''}"
            late = "" if row.converged else " (not converged)"
            cells = [reads + late, f"{row.accuracy:.3f}", f"{row.low:.3f} to {row.high:.3f}", f"{row.balanced:.3f}"]
            body.append(cells + [_chosen(row.probes[0].chosen)] * two)
        equal = 1 / len(self.classes)
        body.append(["none: the most frequent class", f"{self.majority:.3f}", "", f"{equal:.3f}"] + [""] * two)
        return head, body

    def _by_class(self) -> tuple[list[str], list[list[str]]]:
        first = next(row for row in self.rows if row.basis == "features")
        body = [
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
        return ["class", "train + held out", reads, "accuracy", "balanced"], body

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
        if not all(row.converged for row in self.rows):
            yield f"Not converged: a fit was stopped after {_ROUNDS:,} steps, its accuracy is a lower bound"


def sparse_probe(
    model: LanguageModel,
    sae: SAE,
    dataset: Dataset,
    *,
    k: Sequence[int] = (1, 2, 5),
    text: str = "text",
    label: str | None = None,
    labels: Iterable[str] | None = None,
    held_out: float = 0.25,
    limit: int | None = 2_000,
    length: int = 128,
    batch: int = 16,
    seed: int = 0,
    progress: Progress = silent,
    check: Callable[[], None] = lambda: None,
) -> Probe:
    """Whether a class of text can be read off k features, held-out; the same for the activations that the SAE reads.

    `dataset`, `text`, `label` and `labels` are `labelled`'s: (text, label) pairs, a corpus (by source) or a file with
    two fields named. Two classes make one probe, more make one against the rest each. A share of `held_out` of each
    class is tested on; about `limit` texts are read (drawn by class), the first `length` tokens of each. The same seed
    gives the same figures. `check` is called as each block of the model runs; what it raises ends the work.
    Raises MissingDependency without scikit-learn, InputError for fewer than two classes, a class with too few texts, a
    k, share or length that cannot be; what `labelled` raises, and Mismatch where model and SAE do not fit.
    """
    require_sklearn()
    site = require_fit(model, sae)
    k = _sizes(k, min(sae.d_in, sae.d_sae))
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out}: expected a share between 0 and 1, such as 0.25")
    if not 2 <= length <= model.context:
        raise InputError(f"length={length}: expected 2 to {model.context} tokens, which is what {model.name} reads")
    if batch < 1:
        raise InputError(f"batch={batch}: at least 1 text at a time is needed")
    found = labelled(dataset, text=text, label=label, labels=labels)
    random = np.random.default_rng(seed)
    chosen = _drawn(np.array(found.labels), limit, random)
    read = _Reading(model, sae, [found.texts[one] for one in chosen], length)
    with model.watched(check):
        read.run(batch, progress)
    names = np.array([found.labels[one] for one in chosen])[read.kept]
    classes = _classes(found, names)
    y = np.searchsorted(classes, names)
    tested = _split(y, held_out, random)
    rows = []
    for basis, x in (("features", read.features), ("raw", read.raw)):
        for size in (*k, *([None] if basis == "raw" else [])):
            check()
            rows.append(_fit(basis, x, y, tested, classes=classes, k=size))
    counts = [(int((y[~tested] == one).sum()), int((y[tested] == one).sum())) for one in range(len(classes))]
    commonest = int(np.argmax([train for train, _ in counts]))
    return Probe(
        model=model.name,
        sae=sae.info.name,
        site=str(site),
        dataset=found.name,
        classes=tuple(
            Class(label=label, train=train, held_out=held) for label, (train, held) in zip(classes, counts, strict=True)
        ),
        rows=tuple(rows),
        majority=counts[commonest][1] / int(tested.sum()),
        tokens=read.tokens,
        length=length,
        cut=read.cut,
        passed=found.passed,
        skipped=int((~read.kept).sum()),
        repeated=found.repeated,
        left_out=len(found.texts) - len(chosen),
        seed=seed,
    )


def require_sklearn() -> None:
    """Raises MissingDependency, with the command, where scikit-learn is not there."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise MissingDependency('sparse probing needs scikit-learn: pip install "gemscope[probe]"') from error


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, `hits` of `n` (Wilson 1927): never empty, and within 0 to 1, at 0 and 1 as well."""
    share, z2 = hits / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


# --- which texts, and which part of them is held out --------------------------------------------------------------


def _sizes(k: Sequence[int], most: int) -> list[int]:
    sizes = sorted(set(k))
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        raise InputError(f"k={list(k)}: expected numbers of dimensions between 1 and {most}")
    return sizes


def _drawn(labels: Array, limit: int | None, random: np.random.Generator) -> list[int]:
    """Indices of the texts to read, in order: all, or about `limit` of them in the classes' proportions."""
    if limit is None or len(labels) <= limit:
        return list(range(len(labels)))
    kept: list[int] = []
    for one in np.unique(labels):
        where = np.flatnonzero(labels == one)
        n = min(len(where), max(LEAST, round(limit * len(where) / len(labels))))
        kept += random.permutation(where)[:n].tolist()
    return sorted(kept)


def _classes(found: Labelled, labels: Array) -> list[str]:
    """The labels there are, sorted. Raises InputError where that is no problem to learn."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"{found.name} has {len(classes)} class of texts that can be read: two are needed")
    few = int(np.argmin(counts))
    if counts[few] < LEAST:
        raise InputError(
            f"class {str(classes[few])!r} has {counts[few]} texts that can be read: at least {LEAST} are needed; "
            f"leave it out by naming the others with labels="
        )
    return [str(one) for one in classes]


def _split(y: Array, share: float, random: np.random.Generator) -> Array:
    """Which texts are held out: about that share of each class, at least one, and never all."""
    tested = np.zeros(len(y), dtype=bool)
    for one in np.unique(y):
        where = np.flatnonzero(y == one)
        n = min(len(where) - 1, max(1, round(share * len(where))))
        tested[random.permutation(where)[:n]] = True
    return tested


# --- what the model makes of them ---------------------------------------------------------------------------------


class _Reading:
    """Mean activations of each text: of features (sparse, [N, F]) and raw ([N, D]), over its counted tokens."""

    def __init__(self, model: LanguageModel, sae: SAE, texts: Sequence[str], length: int) -> None:
        self._model, self._sae = model, sae
        self._rows = [_start(model, text, length) for text in texts]
        self.cut = sum(longer for _, longer in self._rows)
        self.kept = np.zeros(len(texts), dtype=bool)
        """Texts with a token that counts; `features` and `raw` are of these."""
        self.tokens = 0

    def run(self, batch: int, progress: Progress) -> None:
        from scipy import sparse

        order = sorted(range(len(self._rows)), key=lambda one: len(self._rows[one][0]))  # little padding
        features: list[Any] = [None] * len(order)
        raw: list[Any] = [None] * len(order)
        with progress("read texts", len(order), "texts") as advance:
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                for one, *means in zip(some, *self._batch(some), strict=True):
                    features[one], raw[one] = means
                advance(len(some))
        kept = np.flatnonzero(self.kept)
        if not len(kept):
            raise EmptyText("no text has a token that counts: each has one token, or only special ones")
        self.features = sparse.vstack([features[one] for one in kept], format="csr")
        self.raw = np.stack([raw[one] for one in kept])

    def _batch(self, some: Sequence[int]) -> tuple[list[Any], Array]:
        from scipy import sparse

        model, sae = self._model, self._sae
        tokens = Tokens.of([self._rows[one][0] for one in some], special=model.special_ids)
        assert sae.site is not None
        acts = model.capture(tokens, [sae.site])[sae.site]
        counted = acts.counted.to(sae.W_enc.device)
        n = counted.sum(-1)
        self.kept[list(some)] = (n > 0).cpu().numpy()
        self.tokens += int(n.sum())
        row = counted.nonzero()[:, 0]
        share = 1 / n.clamp(min=1).double()
        values = acts.values.to(counted.device)[counted]
        raw = torch.zeros(len(some), sae.d_in, dtype=torch.float64, device=row.device)
        raw.index_add_(0, row, values.double()).mul_(share[:, None])
        found = sae.encode(values)
        # Texts times features at a time: a batch's few rows may be dense for a moment.
        means = torch.zeros(len(some), sae.d_sae, dtype=torch.float64, device=row.device)
        whose = row[found.tokens]
        means.index_put_((whose, found.features.long()), found.values.double() * share[whose], accumulate=True)
        return [sparse.csr_array(one[None]) for one in means.cpu().numpy()], raw.cpu().numpy()


def _start(model: LanguageModel, text: str, length: int) -> tuple[list[int], bool]:
    """The first `length` ids of a text, and whether there are more."""
    ids = model.ids(text)
    return ids[:length], len(ids) > length


# --- the probes ---------------------------------------------------------------------------------------------------


def _fit(basis: str, x: Any, y: Array, tested: Array, *, classes: Sequence[str], k: int | None) -> Fit:
    """One probe for two classes, or one a class; judged on the held-out texts, of which nothing else has seen any."""
    positives = [1] if len(classes) == 2 else range(len(classes))
    probes, scores = [], []
    for one in positives:
        probe, score = _probe(x, y == one, tested, k=k, label=classes[one])
        probes.append(probe)
        scores.append(score)
    said = (scores[0] > 0).astype(int) if len(classes) == 2 else np.argmax(scores, axis=0)
    truth = y[tested]
    low, high = wilson(int((said == truth).sum()), len(truth))
    return Fit(
        basis=basis,
        k=k,
        accuracy=float((said == truth).mean()),
        low=low,
        high=high,
        balanced=float(np.mean([(said[truth == one] == one).mean() for one in range(len(classes))])),
        probes=tuple(probes),
    )


def _probe(x: Any, positive: Array, tested: Array, *, k: int | None, label: str) -> tuple[OneVsRest, Array]:
    """A class's probe, and what it says of the held-out texts: above 0 where it takes them for the class."""
    dimensions = np.arange(x.shape[1])
    differences = _differences(x[~tested], positive[~tested])
    if k is not None:
        dimensions = np.argsort(-np.abs(differences), kind="stable")[:k]
    columns = x[:, dimensions]
    columns = columns if isinstance(columns, np.ndarray) else columns.toarray()
    seen = columns[~tested]
    middle, spread = seen.mean(0), seen.std(0)
    columns = (columns - middle) / np.where(spread > 0, spread, 1)
    weights, scores, converged = _logistic(columns[~tested], positive[~tested], columns[tested])
    said, truth = scores > 0, positive[tested]
    chosen = () if k is None else zip(dimensions.tolist(), differences[dimensions].tolist(), weights, strict=True)
    made = OneVsRest(
        label=label,
        chosen=tuple(Chosen(dimension=one, difference=by, weight=weight) for one, by, weight in chosen),
        accuracy=float((said == truth).mean()),
        balanced=float(np.mean([(said[truth == side] == side).mean() for side in (False, True)])),
        converged=converged,
    )
    return made, scores


def _differences(x: Any, positive: Array) -> Array:
    """Mean of each dimension over the texts of a class, less that over the others."""
    return np.asarray(x[positive].mean(axis=0) - x[~positive].mean(axis=0), dtype=np.float64).ravel()


def _logistic(x: Array, y: Array, held_out: Array) -> tuple[list[float], Array, bool]:
    """Coefficients, decision values of the held-out rows, and whether the fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
        fitted = LogisticRegression(max_iter=_ROUNDS).fit(x, y)
    scores: Array = fitted.decision_function(held_out)
    return fitted.coef_[0].tolist(), scores, int(fitted.n_iter_[0]) < _ROUNDS


# --- as text ------------------------------------------------------------------------------------------------------


def _many(k: int | None) -> str:
    return "all" if k is None else str(k)


def _shown(text: str) -> str:
    return readable(clipped(text, 60))


def _chosen(chosen: Sequence[Chosen]) -> str:
    most = 5
    more = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(f"{one.dimension} ({'+' if one.difference >= 0 else '−'})" for one in chosen[:most]) + more


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        table.add_column(name)
    for cells in body:
        table.add_row(*map(Text, cells))
    return table


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th align='left' nowrap>{html.escape(name)}</th>" for name in head)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td align='left'{'' if index == len(cells) - 1 else ' nowrap'}>{html.escape(cell)}</td>"
            for index, cell in enumerate(cells)
        )
        + "</tr>"
        for cells in body
    )
    return f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
