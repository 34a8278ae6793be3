"""What a reader may ask, as small values: each knows its fields and what they may be, and is read from a form, a query
or JSON alike. What is then done about it is the handlers' business. `schema` says the same to `openapi.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gemscope.edits.strength import Amount
from gemscope.edits.ways import WAYS
from gemscope.errors import InputError

T = TypeVar("T")

TEXT = 10_000
"""Characters of a text to be read by a model."""
LABEL = 2_000
"""Characters of a label."""
QUERY = 1_000
"""Characters to search for."""

_WHOLE = re.compile(r"-?[0-9]{1,12}")
_REQUIRED: Any = dataclasses.MISSING


@dataclass(frozen=True)
class Rule:
    """What one field may be: what it is called in a request, how it is read, how a schema describes it."""

    name: str
    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]
    blank: bool = False
    """Whether "" is a value. Elsewhere it is a field of a form that was left empty."""
    many: bool = False
    """Whether a form or an address may name it several times."""


def _field(rule: Rule, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"rule": rule})


def string(name: str, *, most: int, least: int = 1, default: Any = _REQUIRED) -> Any:
    """Text that can be written in UTF-8."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise InputError(f"{name} is {_kind(value)}: expected text")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{name} holds half a surrogate pair, which is not text")
        if len(value) > most:
            raise InputError(f"{name} has {len(value):,} characters: at most {most:,} are read")
        if len(value) < least:
            raise InputError(f"{name} is {'empty' if not value else 'too short'}: at least {least} characters")
        return value

    return _field(Rule(name, read, {"type": "string", "minLength": least, "maxLength": most}, blank=True), default)


def strings(name: str, *, most: int, count: int) -> Any:
    """One text or a few; always a tuple here."""
    one: Rule = string(name, most=most).metadata["rule"]

    def read(value: Any, name: str) -> tuple[str, ...]:
        many = value if isinstance(value, list) else [value]
        if not 1 <= len(many) <= count:
            raise InputError(f"{name} has {len(many)} texts: expected 1 to {count}")
        return tuple(one.read(item, name) for item in many)

    many = {"type": "array", "items": one.schema, "minItems": 1, "maxItems": count}
    return _field(Rule(name, read, {"oneOf": [one.schema, many]}, blank=True), _REQUIRED)


def integer(name: str, *, low: int, high: int, default: Any = _REQUIRED) -> Any:
    """A whole number, from `low` to `high`."""

    def read(value: Any, name: str) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name}={_shown(value)}: expected a whole number from {low} to {high:,}")
        return value

    return _field(Rule(name, read, {"type": "integer", "minimum": low, "maximum": high}), default)


def real(name: str, *, low: float = -math.inf, high: float = math.inf, default: Any = None) -> Any:
    """A finite number, from `low` to `high`."""
    bounds = {"minimum": low, "maximum": high}
    within = "" if low == -math.inf else f" from {low:,g} to {high:,g}"

    def read(value: Any, name: str) -> float:
        try:
            found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found) or not low <= found <= high:
            raise InputError(f"{name}={_shown(value)}: expected a number{within}")
        return found

    schema = {"type": "number", **{word: bound for word, bound in bounds.items() if math.isfinite(bound)}}
    return _field(Rule(name, read, schema), default)


def amount(name: str, *, most: float) -> Any:
    """A strength with its unit, up to `most` in size either way; a number alone is raw."""

    def read(value: Any, name: str) -> Amount:
        given = f"{value}" if isinstance(value, int | float) and not isinstance(value, bool) else value
        if not isinstance(given, str):
            raise InputError(f"{name} is {_kind(value)}: expected a strength such as 2max, 0.5norm or 30 (raw)")
        found = Amount.read(given)
        if abs(found.value) > most:
            raise InputError(f"{name}={_shown(value)}: expected a strength from {-most:,.0f} to {most:,.0f}")
        return found

    number = {"type": "number", "minimum": -most, "maximum": most}
    return _field(Rule(name, read, {"oneOf": [number, {"type": "string"}]}), _REQUIRED)


def flag(name: str, *, default: bool | None = None) -> Any:
    """Yes or no."""
    words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}

    def read(value: Any, name: str) -> bool:
        found = value if isinstance(value, bool) else words.get(value) if isinstance(value, str) else None
        if found is None:
            raise InputError(f"{name}={_shown(value)}: expected true or false")
        return found

    return _field(Rule(name, read, {"type": "boolean"}), default)


def choice(name: str, *options: str) -> Any:
    """One of some words, the first unless said."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in options:
            raise InputError(f"{name}={_shown(value)}: expected {', '.join(options)}")
        return value

    return _field(Rule(name, read, {"type": "string", "enum": list(options)}), options[0])


def several(name: str, each: Any, *, count: int, default: Any = ()) -> Any:
    """A list of whatever the field `each` is; in a form or an address, a field that is named several times."""
    one: Rule = each.metadata["rule"]

    def read(value: Any, name: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InputError(f"{name} is {_kind(value)}: expected a list of at most {count}")
        if len(value) > count:
            raise InputError(f"{name} has {len(value)} values: at most {count} are taken")
        return tuple(one.read(item, name) for item in value)

    schema = {"type": "array", "items": one.schema, "maxItems": count}
    return _field(Rule(name, read, schema, many=True), default)


def each(name: str, cls: type[Any], *, count: int) -> Any:
    """A list of other values, within; one at least."""
    one: Rule = inner(name, cls).metadata["rule"]
    listed: Rule = several(name, inner(name, cls), count=count).metadata["rule"]

    def read(value: Any, name: str) -> tuple[Any, ...]:
        if value == []:
            raise InputError(f"{name} is empty: expected 1 to {count}")
        found: tuple[Any, ...] = listed.read(value, name)
        return found

    return _field(Rule(name, read, {"type": "array", "items": one.schema, "minItems": 1, "maxItems": count}), _REQUIRED)


def inner(name: str, cls: type[Any]) -> Any:
    """Another of these values, within."""

    def read(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            raise InputError(f"{name} is {_kind(value)}: expected an object")
        return read_as(cls, value)

    return _field(Rule(name, read, schema(cls)), _REQUIRED)


def read_as(cls: type[T], given: Mapping[str, Any]) -> T:
    """The value that a request gives. What it does not know it leaves alone. Raises InputError, naming the field."""
    found = {}
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        rule: Rule = one.metadata["rule"]
        value = _listed(given, rule.name) if rule.many else given.get(rule.name)
        if value is None or (value == "" and not rule.blank):
            if one.default is _REQUIRED:
                raise InputError(f"{rule.name} is missing")
            continue
        found[one.name] = rule.read(value, rule.name)
    return cls(**found)


def _listed(given: Mapping[str, Any], name: str) -> Any:
    """All that a form or an address says of one field; in JSON it is a list by itself."""
    if not hasattr(given, "getlist"):
        return given.get(name)
    return given.getlist(name) or None


def schema(cls: type[Any]) -> dict[str, Any]:
    """As JSON Schema has it."""
    rules = [(one, one.metadata["rule"]) for one in dataclasses.fields(cls)]
    properties = {}
    for one, rule in rules:
        properties[rule.name] = dict(rule.schema)
        if one.default not in (_REQUIRED, None, ()):
            properties[rule.name]["default"] = one.default
    needed = [rule.name for one, rule in rules if one.default is _REQUIRED]
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


# --- the pages' ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A text to see one feature on."""

    text: str = string("text", most=TEXT)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a feature stands for, as somebody says."""

    text: str = string("text", most=LABEL)
    author: str = string("author", most=100, least=0, default="")


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Which label to take away."""

    id: int = integer("id", low=0, high=10**12)


@dataclass(frozen=True, kw_only=True)
class Browse:
    """Which features to list, and in which order: the arguments of `Atlas.summaries`."""

    order: str = choice("order", "index", "density", "max", "mean", "label")
    descending: bool = flag("descending", default=False)
    dead: bool | None = flag("dead")
    labelled: bool | None = flag("labelled")
    min_density: float | None = real("min_density")
    max_density: float | None = real("max_density")
    min_max: float | None = real("min_max")
    max_max: float | None = real("max_max")
    text: str = string("text", most=QUERY, least=0, default="")
    offset: int = integer("offset", low=0, high=10**9, default=0)
    limit: int = integer("limit", low=1, high=1000, default=100)

    @property
    def filters(self) -> dict[str, Any]:
        """What `Atlas.count` takes."""
        beside = ("order", "descending", "offset", "limit")
        return {name: value for name, value in vars(self).items() if name not in beside}


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to look for: labels, tokens, or features that fire on a text."""

    kind: str = choice("kind", "label", "token", "text")
    text: str = string("text", most=TEXT, least=0, default="")
    token: int | None = integer("token", low=0, high=10**9, default=None)
    """Which of several tokens that look like the text."""
    offset: int = integer("offset", low=0, high=10**6, default=0)
    limit: int = integer("limit", low=1, high=200, default=50)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to see all features on, and one of them to follow over the whole of it."""

    text: str = string("text", most=TEXT, least=0, default="")
    chat: bool = flag("chat", default=False)
    """Whether the text is what a user says in a chat."""
    pin: int | None = integer("pin", low=0, high=10**9, default=None)
    k: int = integer("k", low=1, high=20, default=5)


STEERED = 2048
"""Characters of a text to be continued."""
WRITTEN = 256
"""Tokens that are written at most."""
EDITED = 20
"""Features that are steered with at most."""
STRONG = 1e6
"""Greatest size of a strength, in whatever unit."""
FULL = Amount(1.0, "max")
"""What a feature is steered with unless something is said."""
Row = tuple[int, Amount, float]
"""A feature, its strength and its factor."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What to steer with, and how: the whole state of the steer view, as its address carries it."""

    features: tuple[int, ...] = several("feature", integer("feature", low=0, high=10**9), count=EDITED)
    strengths: tuple[Amount, ...] = several("strength", amount("strength", most=STRONG), count=EDITED)
    """Each with its unit; where there are fewer of them than features, each one's greatest activation."""
    factors: tuple[float, ...] = several("factor", real("factor", low=-1000, high=1000), count=EDITED)
    """For what takes a factor instead (`scale`, `project`); 0 where there are fewer."""
    prompt: str = string("prompt", most=STEERED, least=0, default="")
    chat: bool = flag("chat", default=False)
    """Whether the prompt is what a user says in a chat, to be replied to."""
    how: str = choice("how", *WAYS)
    at: str = choice("at", "all", "prompt", "generated")
    temperature: float = real("temperature", low=0, high=2, default=0.5)
    seed: int = integer("seed", low=-100_000_000, high=100_000_000, default=16)
    tokens: int = integer("tokens", low=1, high=WRITTEN, default=40)
    n: int = integer("n", low=1, high=8, default=1)
    """Texts of each kind."""
    random: bool = flag("random", default=False)
    """Whether other features, as strong, are tried as well: a control."""
    noise: bool = flag("noise", default=False)
    """Whether random directions, as long, are tried as well: a control."""
    run: bool = flag("run", default=False)
    """Whether to write the texts, not only to show what would be asked for."""
    add: str = string("add", most=QUERY, least=0, default="")
    """A feature to take in: its number, or words of its label."""

    def __post_init__(self) -> None:
        """Raises InputError for a feature that is named twice."""
        if len(set(self.features)) < len(self.features):
            raise InputError("feature is named twice: give each feature once, with one strength")

    @property
    def rows(self) -> list[Row]:
        """Each feature with its strength and its factor."""
        strengths, factors = (*self.strengths, *[FULL] * EDITED), (*self.factors, *[0.0] * EDITED)
        return list(zip(self.features, strengths, factors, strict=False))

    def query(self, rows: list[Row] | None = None) -> dict[str, Any]:
        """As an address says it: what is as it would be anyway is left out. `rows` in the place of its own."""
        chosen = self.rows if rows is None else rows
        lists = {
            "feature": [feature for feature, _, _ in chosen],
            "strength": [str(strength) for _, strength, _ in chosen],
            "factor": [f"{factor:g}" for _, _, factor in chosen] if any(factor for _, _, factor in chosen) else [],
        }
        names = ("prompt", "chat", "how", "at", "temperature", "seed", "tokens", "n", "random", "noise")
        plain = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(_PLAIN, name)}
        return {**lists, **plain}


_PLAIN = Steering()


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Which features cause a logit: of what token, at which place of a text."""

    text: str = string("text", most=TEXT, least=0, default="")
    chat: bool = flag("chat", default=False)
    """Whether the text is what a user says in a chat."""
    position: int = integer("position", low=-(10**6), high=10**6, default=-1)
    """The token whose prediction is looked at; negative ones count from the end."""
    target: str = string("target", most=200, least=0, default="")
    """The token whose logit it is; the likeliest where there is none."""
    against: str = string("against", most=200, least=0, default="")
    """A token whose logit is taken away from it."""
    k: int = integer("k", low=1, high=50, default=12)


# --- Neuronpedia's ---------------------------------------------------------------------------------------------------

_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Place:
    """A feature by its address."""

    model: str = string("modelId", most=_NAME)
    source: str | None = string("source", most=_NAME, default=None)
    layer: str | None = string("layer", most=_NAME, default=None)
    """What `source` is called elsewhere."""
    index: int = integer("index", low=0, high=10**9)


@dataclass(frozen=True, kw_only=True)
class ActivationNew:
    """One feature on a text, or on up to four."""

    feature: Place = inner("feature", Place)  # noqa: RUF009
    texts: tuple[str, ...] = strings("customText", most=TEXT, count=4)
    ignore_bos: bool = flag("ignoreBos", default=True)


@dataclass(frozen=True, kw_only=True)
class ActivationSource:
    """All features of a source on a text, or on up to four."""

    model: str = string("modelId", most=_NAME)
    source: str = string("source", most=_NAME)
    texts: tuple[str, ...] = strings("customText", most=TEXT, count=4)
    ignore_bos: bool = flag("ignoreBos", default=True)


@dataclass(frozen=True, kw_only=True)
class SearchAll:
    """The strongest features of several sources over a whole text."""

    model: str = string("modelId", most=_NAME)
    source_set: str = string("sourceSet", most=_NAME, least=0, default="")
    text: str = string("text", most=TEXT)
    sources: tuple[str, ...] = several("selectedLayers", string("selectedLayers", most=_NAME), count=200)
    positions: tuple[int, ...] = several("sortIndexes", integer("sortIndexes", low=0, high=10**6), count=1000)
    ignore_bos: bool = flag("ignoreBos", default=True)
    density: float = real("densityThreshold", default=-1.0)
    limit: int = integer("numResults", low=1, high=100, default=50)


@dataclass(frozen=True, kw_only=True)
class TopByToken:
    """The strongest features of each token of a text."""

    model: str = string("modelId", most=_NAME)
    source: str = string("source", most=_NAME)
    text: str = string("text", most=TEXT)
    limit: int = integer("numResults", low=1, high=20, default=10)
    ignore_bos: bool = flag("ignoreBos", default=True)
    density: float = real("densityThreshold", default=0.01)


@dataclass(frozen=True, kw_only=True)
class ExplanationSearch:
    """Features by what their labels say."""

    model: str = string("modelId", most=_NAME)
    sources: tuple[str, ...] = several("layers", string("layers", most=_NAME), count=200)
    query: str = string("query", most=QUERY, least=3)
    offset: int = integer("offset", low=0, high=10**6, default=0)


@dataclass(frozen=True, kw_only=True)
class SteerFeature:
    """A feature to steer with."""

    model: str = string("modelId", most=_NAME)
    layer: str = string("layer", most=_NAME)
    """The name of its source."""
    index: int = integer("index", low=0, high=10**9)
    strength: float = real("strength", low=-STRONG, high=STRONG, default=_REQUIRED)
    """Times the decoder row."""


@dataclass(frozen=True, kw_only=True)
class Steer:
    """A text to be continued twice: as the model would, and steered."""

    prompt: str = string("prompt", most=STEERED)
    model: str = string("modelId", most=_NAME)
    features: tuple[SteerFeature, ...] = each("features", SteerFeature, count=EDITED)
    temperature: float = real("temperature", low=0, high=2, default=0.5)
    tokens: int = integer("n_tokens", low=1, high=WRITTEN, default=48)
    freq_penalty: float = real("freq_penalty", low=-2, high=2, default=0.0)
    """Accepted and left alone, as it is there."""
    seed: int = integer("seed", low=-100_000_000, high=100_000_000, default=16)
    multiplier: float = real("strength_multiplier", low=0, high=10, default=1.0)
    method: str = choice("steer_method", "SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP")
    stream: bool = flag("stream", default=False)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, str | int | float) else _kind(value)
