"""What a reader may ask, as declared values: each names its fields, what they may be and what they mean, for a form, an
address and JSON alike. `asking` reads them, `openapi` describes them; what is then done is the handlers' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

from gemscope.atlas.notes import kept
from gemscope.checked import Finite
from gemscope.edits import defaults
from gemscope.edits.strength import Amount
from gemscope.edits.ways import WAYS
from gemscope.errors import InputError

TEXT, QUERY = 1_000_000, 1_000
"""Characters of a text to be read by a model, and of one to search for. How many tokens a model reads is its own
matter, and said by it: no text that it reads is longer than this.
"""

Text = Annotated[str, Meta(min_length=1, max_length=TEXT)]
Words = Annotated[str, Meta(max_length=QUERY)]
Typed = Annotated[str, Meta(max_length=TEXT)]
"""A text that may be empty: a page without an answer."""
Index = Annotated[int, Meta(ge=0, le=10**9)]
"""Of a feature, or a token's id."""
Place = Annotated[int, Meta(ge=0, le=10**6)]
"""How far into a text or a list."""


def said(asked: Struct) -> dict[str, Any]:
    """As an address says it: what is as it would be anyway is left out."""
    plain = type(asked)()
    return {name: value for name, value in asdict(asked).items() if value != getattr(plain, name)}


# --- the pages' ------------------------------------------------------------------------------------------------------


class Trial(Struct, frozen=True, kw_only=True):
    """A text to see one feature on."""

    text: Text


class Label(Struct, frozen=True, kw_only=True):
    """What a feature stands for, as somebody says."""

    text: Annotated[str, Meta(min_length=1, max_length=2_000)]
    author: Annotated[str, Meta(max_length=100)] = ""


class Forget(Struct, frozen=True, kw_only=True):
    """Which label to take away."""

    id: Annotated[int, Meta(ge=0, le=10**12)]


class Browse(Struct, frozen=True, kw_only=True):
    """Which features to list, and in which order: the arguments of `Atlas.summaries`."""

    order: Literal["index", "density", "max", "mean", "label"] = "index"
    descending: bool = False
    dead: bool | None = None
    labelled: bool | None = None
    min_density: Finite | None = None
    max_density: Finite | None = None
    min_max: Finite | None = None
    max_max: Finite | None = None
    text: Words = ""
    offset: Index = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100

    @property
    def filters(self) -> dict[str, Any]:
        """What `Atlas.count` takes."""
        beside = ("order", "descending", "offset", "limit")
        return {name: value for name, value in asdict(self).items() if name not in beside}


class Mapped(Struct, frozen=True, kw_only=True):
    """What to light up on the map: what labels say, a list of one's own, or a feature."""

    text: Words = ""
    list: Annotated[str, Meta(max_length=200)] = ""
    feature: Index | None = None


class Whole(Struct, frozen=True, kw_only=True):
    """What the grid of a model's SAEs shows."""

    by: Literal["fvu", "delta_loss", "dead", "l0", "unlike_fvu", "unlike_delta_loss"] = "fvu"
    """The figure of each cell."""
    width: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    """SAEs of so many features alone."""
    site: Annotated[str, Meta(max_length=40)] = ""
    """A site whose SAEs are listed below."""


class Everywhere(Struct, frozen=True, kw_only=True):
    """Words of labels, looked for in all atlases."""

    text: Words = ""
    model: Annotated[str, Meta(max_length=200)] = ""
    """In those of one model alone."""
    offset: Place = 0
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class Layers(Struct, frozen=True, kw_only=True):
    """A text to be read at all layers, through the SAEs of one kind of site."""

    text: Typed = ""
    chat: bool = False
    """Whether the text is what a user says in a chat."""
    kind: Annotated[str, Meta(max_length=40)] = ""
    """Of site; that with the most layers where none is named."""
    width: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    """Of the SAEs; the one that the most sites have where none is named."""
    k: Annotated[int, Meta(ge=1, le=10)] = 3
    """Features of each token."""
    at: Place | None = None
    """A token to be seen through all layers by itself."""
    pin: Annotated[str, Meta(max_length=420)] = ""
    """A feature to follow over the whole text, SAE/FEATURE."""
    start: Place = 0
    """The first token that the page shows of a long text."""


class Search(Struct, frozen=True, kw_only=True):
    """What to look for: a feature by its number, labels, tokens that features fire on or promote, or features that fire
    on a text.
    """

    kind: Literal["any", "label", "token", "promoted", "text"] = "any"
    """How the text is meant; any: as finds most, and the others are offered."""
    text: Typed = ""
    token: Index | None = None
    """Which of several tokens that look like the text."""
    offset: Place = 0
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class Prompt(Struct, frozen=True, kw_only=True):
    """A text to see all features on, and one of them to follow over the whole of it."""

    text: Typed = ""
    chat: bool = False
    """Whether the text is what a user says in a chat."""
    pin: Index | None = None
    k: Annotated[int, Meta(ge=1, le=20)] = 5
    start: Place = 0
    """The first token that the page shows of a long text."""


class Compare(Struct, frozen=True, kw_only=True):
    """Two features (MODEL/SAE/FEATURE), or two SAEs (MODEL/SAE), to see side by side."""

    a: Annotated[str, Meta(max_length=500)] = ""
    b: Annotated[str, Meta(max_length=500)] = ""
    match: bool = False
    """Whether to look for features of one SAE in the other, which takes a while."""
    k: Annotated[int, Meta(ge=1, le=200)] = 12
    """Pairs that are shown of two SAEs, and features that one of them alone has."""


class Texts(Struct, frozen=True, kw_only=True):
    """Two texts to see side by side."""

    text: Typed = ""
    other: Typed = ""
    chat: bool = False
    """Whether each is what a user says in a chat."""
    k: Annotated[int, Meta(ge=1, le=50)] = 12


STEERED = 2048
"""Characters of a text to be continued."""
EDITED = 20
"""Features that are steered with at most."""
STRONG = 1e6
"""Greatest size of a strength, in whatever unit."""
TURNS = 16
"""Of a chat that were answered before, at most."""
Row = tuple[int, Amount, float]
"""A feature, its strength and its factor."""

Strong = Annotated[float, Meta(ge=-STRONG, le=STRONG)]
Written = Annotated[int, Meta(ge=1, le=256)]
"""Tokens to write."""
Replies = Annotated[tuple[Typed, ...], Meta(max_length=TURNS)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Seed = Annotated[int, Meta(ge=-100_000_000, le=100_000_000)]

if TYPE_CHECKING:
    Way = str
else:
    Way = Literal[tuple(WAYS)]


class Steering(
    Struct, frozen=True, kw_only=True, rename={"features": "feature", "strengths": "strength", "factors": "factor"}
):
    """What to steer with, and how: the whole state of the steer view, as its address carries it."""

    features: Annotated[tuple[Index, ...], Meta(max_length=EDITED)] = ()
    strengths: Annotated[tuple[Strong | Annotated[str, Meta(max_length=100)], ...], Meta(max_length=EDITED)] = ()
    """Each with its unit, raw without; 0.5norm where there are fewer than features."""
    factors: Annotated[tuple[Annotated[float, Meta(ge=-1000, le=1000)], ...], Meta(max_length=EDITED)] = ()
    """For what takes a factor instead (`scale`, `project`); 0 where there are fewer."""
    prompt: Annotated[str, Meta(max_length=STEERED)] = ""
    chat: bool = False
    """Whether the prompt is what a user says in a chat, to be replied to."""
    said: Annotated[tuple[Annotated[str, Meta(max_length=STEERED)], ...], Meta(max_length=TURNS)] = ()
    """What the user said before, turn by turn."""
    alone: Replies = ()
    """What the model as it is replied to each."""
    steered: Replies = ()
    """What it replied to each when it was steered: both sides of a chat go on in their own words."""
    how: Way = next(iter(WAYS))
    at: Literal["all", "prompt", "generated"] = "all"
    temperature: Temperature = defaults.TEMPERATURE
    seed: Seed = defaults.SEED
    tokens: Written = defaults.TOKENS
    n: Annotated[int, Meta(ge=1, le=8)] = defaults.SAMPLES
    """Texts of each kind."""
    random: bool = False
    """Whether other features, as strong, are tried as well: a control."""
    noise: bool = False
    """Whether random directions, as long, are tried as well: a control."""
    run: bool = False
    """Whether to write the texts, not only to show what would be asked for."""
    add: Words = ""
    """A feature to take in: its number, or words of its label."""

    def __post_init__(self) -> None:
        """Raises InputError for a feature that is named twice, for what is no strength, and for half a chat."""
        if len(set(self.features)) < len(self.features):
            raise InputError("feature is named twice: give each feature once, with one strength")
        for amount in self._amounts:
            if abs(amount.value) > STRONG:
                raise InputError(f"strength={amount}: expected a strength from {-STRONG:,.0f} to {STRONG:,.0f}")
        if not len(self.said) == len(self.alone) == len(self.steered):
            raise InputError(
                f"{len(self.said)} turns said, {len(self.alone)} replies alone and {len(self.steered)} steered: "
                "expected as many of each"
            )
        if self.said and (not self.chat or self.n > 1 or self.random or self.noise):
            raise InputError(
                "a chat that goes on has one sample and no controls: say chat=true, n=1, no random or noise"
            )

    @property
    def texts(self) -> tuple[Any, Any]:
        """What the model as it is goes on from, and what it does steered: texts, or the turns of a chat."""
        if not self.chat:
            return self.prompt, self.prompt
        from gemscope.text.chat import history  # brings torch, and is asked by who has a model

        said = [*self.said, self.prompt]
        return history(said, self.alone), history(said, self.steered)

    @property
    def _amounts(self) -> list[Amount]:
        return [Amount.read(str(strength)) for strength in self.strengths]

    @property
    def rows(self) -> list[Row]:
        """Each feature with its strength and its factor."""
        strengths, factors = (*self._amounts, *[defaults.STRENGTH] * EDITED), (*self.factors, *[0.0] * EDITED)
        return list(zip(self.features, strengths, factors, strict=False))

    def query(self, rows: list[Row] | None = None) -> dict[str, Any]:
        """As an address says it: what is as it would be anyway is left out. `rows` in the place of its own."""
        chosen = self.rows if rows is None else rows
        lists = {
            "feature": [feature for feature, _, _ in chosen],
            "strength": [str(strength) for _, strength, _ in chosen],
            "factor": [f"{factor:g}" for _, _, factor in chosen] if any(factor for _, _, factor in chosen) else [],
        }
        return {**lists, **{name: value for name, value in self.state.items() if value != getattr(_PLAIN, name)}}

    @property
    def state(self) -> dict[str, Any]:
        """All but the features, what was said before, and what is to be done now."""
        beside = ("features", "strengths", "factors", "said", "alone", "steered", "run", "add")
        return {name: value for name, value in asdict(self).items() if name not in beside}


_PLAIN = Steering()


class Cause(Struct, frozen=True, kw_only=True):
    """Which features cause a logit: of what token, at which place of a text."""

    text: Typed = ""
    chat: bool = False
    """Whether the text is what a user says in a chat."""
    position: Annotated[int, Meta(ge=-(10**6), le=10**6)] = -1
    """The token whose prediction is looked at; negative ones count from the end."""
    target: Annotated[str, Meta(max_length=200)] = ""
    """The token whose logit it is; the likeliest where there is none."""
    against: Annotated[str, Meta(max_length=200)] = ""
    """A token whose logit is taken away from it."""
    k: Annotated[int, Meta(ge=1, le=50)] = 12


# --- lists of one's own ----------------------------------------------------------------------------------------------

Entry = Annotated[str, Meta(min_length=1, max_length=500)]
"""A feature's address, `model@source:index`."""


class ListHead(Struct, frozen=True, kw_only=True, rename={"about": "description"}):
    """What a list is called, and what it is about."""

    name: kept.Name
    about: kept.Note = ""


class ListKeep(Struct, frozen=True, kw_only=True, rename={"features": "feature"}):
    """Features for a list."""

    features: Annotated[tuple[Entry, ...], Meta(max_length=200)] = ()
    list: kept.Name = "Bookmarks"
    note: kept.Note = ""
    several: bool = False
    """Whether they were chosen among others: the answer then is about the list, and not a feature's page."""


class ListMove(Struct, frozen=True, kw_only=True):
    """An entry, and that before which it goes; behind all where none is named."""

    feature: Entry
    before: Annotated[str, Meta(max_length=500)] = ""


class ListNote(Struct, frozen=True, kw_only=True):
    """An entry, its note, and the note that this one was written over."""

    feature: Entry
    note: kept.Note = ""
    was: kept.Note = ""


class ListRemove(Struct, frozen=True, kw_only=True, rename={"features": "feature"}):
    """Entries to take out."""

    features: Annotated[tuple[Entry, ...], Meta(min_length=1, max_length=200)]


class ListImport(Struct, frozen=True, kw_only=True):
    """A list as JSON, and another name for it."""

    text: Annotated[str, Meta(min_length=1, max_length=1_000_000)]
    name: Annotated[str, Meta(max_length=200)] = ""


# --- Neuronpedia's ---------------------------------------------------------------------------------------------------

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], Meta(max_length=200)]
_THEIRS = {
    "model": "modelId",
    "given": "customText",
    "ignore_bos": "ignoreBos",
    "source_set": "sourceSet",
    "positions": "sortIndexes",
    "density": "densityThreshold",
    "limit": "numResults",
    "tokens": "n_tokens",
    "multiplier": "strength_multiplier",
    "method": "steer_method",
}


class Feature(Struct, frozen=True, kw_only=True, rename=_THEIRS):
    """A feature by its address."""

    model: Name
    source: Name | None = None
    layer: Annotated[Name | None, Meta(description="what `source` is called elsewhere")] = None
    index: Index


class _OnTexts(Struct, frozen=True, kw_only=True, rename=_THEIRS):
    given: Text | Annotated[tuple[Text, ...], Meta(min_length=1, max_length=4)]
    ignore_bos: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """One or more."""
        return (self.given,) if isinstance(self.given, str) else self.given


class ActivationNew(_OnTexts, frozen=True, kw_only=True):
    """One feature on a text, or on up to four."""

    feature: Feature


class ActivationSource(_OnTexts, frozen=True, kw_only=True):
    """All features of a source on a text, or on up to four."""

    model: Name
    source: Name


class SearchAll(Struct, frozen=True, kw_only=True, rename=_THEIRS | {"sources": "selectedLayers"}):
    """The strongest features of several sources over a whole text."""

    model: Name
    source_set: Annotated[str, Meta(max_length=200)] = ""
    text: Text
    sources: Names = ()
    positions: Annotated[tuple[Place, ...], Meta(max_length=1000)] = ()
    ignore_bos: bool = True
    density: Finite = -1.0
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class TopByToken(Struct, frozen=True, kw_only=True, rename=_THEIRS):
    """The strongest features of each token of a text."""

    model: Name
    source: Name
    text: Text
    limit: Annotated[int, Meta(ge=1, le=20)] = 10
    ignore_bos: bool = True
    density: Finite = 0.01


class ExplanationSearch(Struct, frozen=True, kw_only=True, rename=_THEIRS | {"sources": "layers"}):
    """Features by what their labels say."""

    model: Name
    sources: Names = ()
    query: Annotated[str, Meta(min_length=3, max_length=QUERY)]
    offset: Place = 0


class SteerFeature(Struct, frozen=True, kw_only=True, rename=_THEIRS):
    """A feature to steer with."""

    model: Name
    layer: Annotated[Name, Meta(description="the name of its source")]
    index: Index
    strength: Annotated[Strong, Meta(description="times the decoder row")]


class Steer(Struct, frozen=True, kw_only=True, rename=_THEIRS):
    """A text to be continued twice: as the model would, and steered."""

    prompt: Annotated[str, Meta(min_length=1, max_length=STEERED)]
    model: Name
    features: Annotated[tuple[SteerFeature, ...], Meta(min_length=1, max_length=EDITED)]
    temperature: Temperature = 0.5
    tokens: Written = 48
    freq_penalty: Annotated[float, Meta(ge=-2, le=2, description="accepted and left alone, as it is there")] = 0.0
    seed: Seed = 16
    multiplier: Annotated[float, Meta(ge=0, le=10)] = 1.0
    method: Literal["SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP"] = "SIMPLE_ADDITIVE"
    stream: bool = False
