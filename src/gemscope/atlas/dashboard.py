"""Everything that one feature's page shows, as plain values. An `Atlas` keeps them, `pages/` draws them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gemscope.atlas.entry import AGREED
from gemscope.atlas.labels.trial import Trial
from gemscope.atlas.output import OutputScore
from gemscope.features.histogram import Histogram
from gemscope.pages.labels import meaning
from gemscope.pages.plain import Shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, kw_only=True)
class Example:
    """A place in the corpus where the feature fires, with the text around it."""

    document: int
    """Which document of the corpus, from 0; -1 where that is not known."""
    position: int
    """Index of the firing token in its document; -1 where that is not known."""
    source: str = ""
    """What the document is from; "" where that is not known."""
    license: str = ""
    peak: int
    """Index of the firing token in `tokens`."""
    ids: list[int]
    tokens: list[str]
    """The text that each token completes: "" for one that ends within a character."""
    values: list[float]
    """The feature's activation on each token; 0 where it is silent or the token does not count."""
    interval: int | None = None
    """None among the strongest; else which of the dashboard's intervals it was drawn from."""

    @property
    def value(self) -> float:
        """The activation that the example stands for."""
        return self.values[self.peak]


@dataclass(frozen=True)
class Interval:
    """A range of activations, low ≤ value < high, and how many of the feature's firings fall into it."""

    low: float
    high: float
    count: int
    share: float


@dataclass(frozen=True)
class Logit:
    """A token of the vocabulary and what one unit of the feature adds to its logit."""

    id: int
    token: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Writes:
    """What a unit of a feature does to the logits by the measured effect of the site at which it writes: on average
    over text, on this position and later ones together.
    """

    promoted: list[Logit]
    suppressed: list[Logit]
    spread: float
    """Standard deviation of what it does to all tokens of the vocabulary."""
    agreement: float
    """Correlation over the vocabulary of what the two halves of the text say."""
    this: float
    """Share of it that is on the prediction at the feature's own position; the rest is on later ones."""
    words: str | None
    """What it promotes, in a few words; None where that would say nothing."""

    @property
    def agreed(self) -> bool:
        """Whether the halves of the text agree enough for anything to be said by it."""
        return self.agreement >= AGREED

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pos_str": [one.token for one in self.promoted],
            "pos_values": [one.value for one in self.promoted],
            "neg_str": [one.token for one in self.suppressed],
            "neg_values": [one.value for one in self.suppressed],
            "spread": self.spread,
            "agreement": self.agreement,
            "agreed": self.agreed,
            "this_position": self.this,
            "promotes": self.words,
        }


@dataclass(frozen=True)
class Neighbour:
    """Another feature, how close its decoder direction is (cosine), and its label."""

    feature: int
    cosine: float
    label: str | None = None
    """What it stands for and promotes, as far as that is known."""
    token: str | None = None
    """The token on which its strongest example fires."""


@dataclass(frozen=True)
class Partner:
    """Another feature that fires on the same tokens."""

    feature: int
    jaccard: float
    """Tokens on which both fire over tokens on which either fires."""
    share: float
    """Share of this feature's tokens on which the other fires too."""
    label: str | None = None
    """What it stands for and promotes, as far as that is known."""
    token: str | None = None
    """The token on which its strongest example fires."""


@dataclass(frozen=True, kw_only=True)
class Kindred:
    """A feature of an SAE at another site, and how it is related to this one."""

    feature: int
    cosine: float | None
    """Of the decoder directions; None where these cannot be compared."""
    correlation: float
    """Of the activations of both, over all tokens."""
    both: int
    """Tokens on which both fire."""
    effect: float | None
    """What a mean firing of the earlier one adds to the later one on average, in mean firings of that one; None where
    it does not reach it.
    """
    nearest: bool
    """Whether it is the one that goes on as this feature: beyond chance, and nearer than any other there."""
    label: str | None = None
    """What it stands for and promotes, as far as that is known."""


@dataclass(frozen=True, kw_only=True)
class Related:
    """Features of one SAE at another site that are related to this one (`features/relating.py`)."""

    sae: str
    digest: str
    site: str
    """Where it reads, and where it writes if elsewhere."""
    later: bool
    """Whether it comes later in the model."""
    source: str
    """Model and source as in the address of its atlas's pages; empty where that is not known."""
    tokens: int
    """That figures are over."""
    corpus: str
    effect_tokens: int | None
    """That effects are the mean over; None where there are none: `why` says why."""
    why: str
    features: list[Kindred]
    """Those that correlate most first."""
    pages: str = ""
    """Address of its features' pages, where they are served."""

    def shown(self, each: int = 3) -> list[Kindred]:
        """Those with the highest figures of each kind, in the same order."""
        kept = set[int]()
        for rank in (
            lambda one: -(one.cosine or 0),
            lambda one: -one.correlation,
            lambda one: -(one.effect or 0),
            lambda one: one.effect or 0,
        ):
            kept.update(one.feature for one in sorted(self.features, key=rank)[:each])
        return [one for one in self.features if one.feature in kept]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sae": self.sae,
            "sae_digest": self.digest,
            "site": self.site,
            "later": self.later,
            "source": self.source or None,
            "tokens_counted": self.tokens,
            "effect_tokens": self.effect_tokens,
            "why": self.why or None,
            "features": [
                {
                    "index": one.feature,
                    "label": one.label,
                    "cosine": one.cosine,
                    "correlation": one.correlation,
                    "both": one.both,
                    "effect": one.effect,
                    "nearest": one.nearest,
                }
                for one in self.features
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Life:
    """Where along a chain of SAEs a feature begins and ends."""

    born: str
    """Site of the first in which a line of nearest relatives ends."""
    gone: str
    """Of the last."""
    chain: list[str]
    """Sites of all."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What somebody, or some method, says that a feature stands for."""

    id: int
    text: str
    method: str = "user"
    """How it came about: `user`, `import`, `rule`, or the name of an explainer."""
    author: str = ""
    score: float | None = None
    """How far it is right, from 0 to 1, on text that it was not made from; None where nobody has measured it. Of a rule
    it is the balanced accuracy where the feature fires strongly, on the rows that the atlas holds out.
    """
    control: float | None = None
    """What another feature's label gets in its place."""
    confidence: float | None = None
    """Of a rule: recall less match rate, on the very examples that it was learnt from."""
    rule: str = ""
    """The same as a rule that can be run on any text (`features/rules.py`), where there is one."""
    model: str = ""
    """The language model that wrote it, if one did."""
    made: str = ""
    """The day, as 2026-05-31; "" where it is not known."""
    trials: tuple[Trial, ...] = ()
    """What running its rule on text came to."""

    @property
    def figures(self) -> list[tuple[str, float | None]]:
        """Its numbers, by name."""
        return [(name, getattr(self, name)) for name in ("score", "control", "confidence")]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with Neuronpedia's names where it has them."""
        return {
            "id": str(self.id),
            "description": self.text,
            "typeName": self.method,
            "authorId": self.author,
            "explanationModelName": self.model or None,
            "score": self.score,
            "control": self.control,
            "confidence": self.confidence,
            "rule": self.rule or None,
            "createdAt": self.made or None,
            "trials": [one.to_dict() for one in self.trials],
        }


@dataclass(frozen=True)
class Summary:
    """One feature as a line of a list."""

    feature: int
    count: int
    density: float
    max: float
    mean: float
    label: str | None = None
    token: str | None = None
    """The token on which its strongest example fires."""
    promotes: str | None = None
    """What it promotes by the measured effect of its site, in a few words, where that says something."""

    @property
    def meaning(self) -> str | None:
        """Label and what it promotes, as far as there is either."""
        return meaning(self.label, self.promotes)


@dataclass(frozen=True)
class Glance:
    """What a list shows of a feature beside its name."""

    tokens: list[str]
    """The text around the strongest firing: what each token completes. Empty where there is no example."""
    peak: int
    """Index of the firing token in it."""
    histogram: Histogram | None = None
    """Of its activations."""


@dataclass(frozen=True, kw_only=True)
class Dashboard(Shown):
    """One feature of one SAE: figures over all `tokens` counted tokens of the corpus, examples, logits, relatives.

    Special tokens, first positions, padding and attention sinks are in none of it.
    """

    model: str
    """As in the address of its page: `smollm2-135m-instruct`."""
    source: str
    """As in the address of its page: `15-res-8k`."""
    index: int
    count: int
    """Counted tokens on which it fires."""
    tokens: int
    """Counted tokens read."""
    max: float
    mean: float
    """Over the tokens on which it fires."""
    encoder_cosine: float | None = None
    """Between its encoder column and its decoder row; None where they are of different widths or not known."""
    decoder_norm: float | None = None
    """Activations are in units of this decoder norm."""
    histogram: Histogram | None = None
    intervals: list[Interval] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    """The strongest, strongest first; then those of the intervals, from the highest interval down."""
    left_out: int = 0
    """How many of the latter there are that were not read."""
    promoted: list[Logit] = field(default_factory=list)
    """By the direct path."""
    suppressed: list[Logit] = field(default_factory=list)
    writes: Writes | None = None
    """By the measured effect; None where there is none."""
    output: OutputScore | None = None
    """What it did to the output when it was turned up; None where nobody has measured it."""
    logit_histogram: Histogram | None = None
    neighbours: list[Neighbour] = field(default_factory=list)
    coactive: list[Partner] = field(default_factory=list)
    related: list[Related] = field(default_factory=list)
    """By SAE at another site, in the model's order."""
    life: Life | None = None
    explanations: list[Explanation] = field(default_factory=list)
    """The best first."""

    @property
    def density(self) -> float:
        """Share of the counted tokens on which it fires."""
        return self.count / self.tokens if self.tokens else 0.0

    @property
    def dead(self) -> bool:
        """Whether it fired nowhere."""
        return self.count == 0

    @property
    def label(self) -> str | None:
        """The explanation to show where there is room for one."""
        return self.explanations[0].text if self.explanations else None

    @property
    def promotes(self) -> str | None:
        """What it promotes by the measured effect of its site, in a few words, where that says something."""
        return self.writes.words if self.writes else None

    @property
    def meaning(self) -> str | None:
        """Label and what it promotes, as far as there is either."""
        return meaning(self.label, self.promotes)

    @property
    def strongest(self) -> list[Example]:
        """The strongest examples."""
        return [one for one in self.examples if one.interval is None]

    def within(self, interval: int) -> list[Example]:
        """The examples drawn from one interval."""
        return [one for one in self.examples if one.interval == interval]

    def group(self, example: Example) -> tuple[float, float, float]:
        """Bounds and share of the firings of the interval that it was drawn from, as Neuronpedia marks them: -1, the
        maximum and -1 among the strongest.
        """
        if example.interval is None:
            return -1.0, self.max, -1.0
        found = self.intervals[example.interval]
        return found.low, found.high, found.share

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from gemscope.pages.feature import lines

        yield from lines(self, options.max_width)

    def _repr_html_(self) -> str:
        from gemscope.pages.standalone import feature_frame

        return feature_frame(self, None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with Neuronpedia's names where it has them."""
        logits = self.logit_histogram
        return {
            "modelId": self.model,
            "layer": self.source,
            "index": str(self.index),
            "maxActApprox": self.max,
            "frac_nonzero": self.density,
            "count": self.count,
            "tokens_counted": self.tokens,
            "mean_activation": self.mean,
            "encoder_decoder_cosine": self.encoder_cosine,
            "decoder_norm": self.decoder_norm,
            "pos_str": [one.token for one in self.promoted],
            "pos_values": [one.value for one in self.promoted],
            "neg_str": [one.token for one in self.suppressed],
            "neg_values": [one.value for one in self.suppressed],
            "effect": None if self.writes is None else self.writes.to_dict(),
            "output": None if self.output is None else self.output.to_dict(),
            "freq_hist_data_bar_heights": self.histogram.counts if self.histogram else [],
            "freq_hist_data_bar_values": self.histogram.middles if self.histogram else [],
            "logits_hist_data_bar_heights": logits.counts if logits else [],
            "logits_hist_data_bar_values": logits.middles if logits else [],
            "topkCosSimIndices": [one.feature for one in self.neighbours],
            "topkCosSimValues": [one.cosine for one in self.neighbours],
            "coactivation": [
                {"index": one.feature, "jaccard": one.jaccard, "share": one.share} for one in self.coactive
            ],
            "relatives": [one.to_dict() for one in self.related],
            "life": None if self.life is None else asdict(self.life),
            "explanations": [one.to_dict() for one in self.explanations],
            "activations": [self._activation(one) for one in self.examples],
        }

    def _activation(self, one: Example) -> dict[str, Any]:
        low, high, share = self.group(one)
        return {
            "tokens": one.tokens,
            "values": one.values,
            "maxValue": max(one.values),
            "minValue": min(one.values),
            "maxValueTokenIndex": max(range(len(one.values)), key=one.values.__getitem__),
            "qualifyingTokenIndex": one.peak,
            "binMin": low,
            "binMax": high,
            "binContains": share,
            "dataIndex": one.document,
            "dataSource": one.source or None,
            "position": one.position,
            "token_ids": one.ids,
        }
