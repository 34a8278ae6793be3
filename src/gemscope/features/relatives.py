"""The relatives of an SAE's features among those of other SAEs of the same model, as a value and as a file: pairs of
features with three figures beside each other. Finding them is `relating.py`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gemscope.activations.site import Site, described, require_names
from gemscope.checked import Count, Form, Positive, as_read, checksum_of, json_of, require_forms, shown
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, Mismatch, NotFound
from gemscope.features.sealed import seal, unsealed

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
Figure = Literal["cosine", "correlation", "effect"]
FIGURES: tuple[Figure, ...] = ("cosine", "correlation", "effect")
_NAME, _REMEDY = "gemscope_relatives", "find the relatives again"
_PARTS = ("starts", "ids", *FIGURES, "both")


class Relative(NamedTuple):
    """A feature of another SAE, and how it is related to one of ours."""

    feature: int
    cosine: float | None
    """Of the decoder directions; None where these are of different widths."""
    correlation: float
    """Pearson's, of the activations of both over all tokens."""
    both: int
    """Tokens on which both fire."""
    effect: float | None
    """What a mean firing of the earlier feature adds, on average, to the later one's pre-activations over the text that
    follows, in mean firings of that one; None where nothing that one writes reaches the other.
    """


@dataclass(frozen=True, kw_only=True)
class Party:
    """An SAE that relatives are of."""

    name: str
    digest: str
    site: str
    """Where it reads."""
    site_out: str
    """Where it writes."""
    d_sae: Positive

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(self.site, self.site_out)

    @property
    def place(self) -> str:
        """Where it reads and writes, in a few characters."""
        return described(self.site, self.site_out)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """By which mean Jacobian effects were read."""

    site: str
    until: str
    tokens: Count
    """That it is the mean over; 0 where both are one place, and it is the identity."""
    agreement: float
    """Cosine of what the two halves of the text gave."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What each figure reaches by chance: the best relative of 1 in 100 living features is above it where the other
    SAE's directions have their coordinates shuffled, and its tokens are others of the text. None: there is no such
    figure.
    """

    cosine: float | None
    correlation: float
    effect: float | None


@dataclass(frozen=True, kw_only=True)
class Text:
    """What was read."""

    corpus: str
    corpus_digest: str
    tokens: Positive
    """That count."""
    length: Positive
    """Tokens per row."""
    dropped: dict[str, Count]
    """Places that count for none, by reason."""
    dtype: str
    """Number format that the model computed in."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What relatives are among, of one other SAE."""

    other: Party
    later: bool
    """Whether the other comes later in the model."""
    text: Text
    bounds: Bounds
    effect: Measured | None
    why: str
    """Why there is no effect, or no cosine; empty where there are both."""
    source: str = ""
    """Of an atlas of the other: model and source, as in the address of its pages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relation:
    """The relatives of F features among those of one other SAE: E pairs, those of the first feature first, each time
    the pair that correlates most first.
    """

    about: About
    starts: Array
    """int64 [F + 1]"""
    ids: Array
    """int32 [E]"""
    cosine: Array
    """float32 [E]; 0 where there is none."""
    correlation: Array
    """float32 [E]"""
    both: Array
    """int32 [E]"""
    effect: Array
    """float32 [E]; 0 where there is none."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What the other's features among them stand for, as far as an atlas said when they were put into one."""

    @property
    def other(self) -> Party:
        """Whose features they are."""
        return self.about.other

    def of(self, feature: int) -> tuple[Relative, ...]:
        """Of one feature, those that correlate most first."""
        some = slice(int(self.starts[feature]), int(self.starts[feature + 1]))
        cosines, effects = self.about.bounds.cosine is not None, self.about.effect is not None
        parts = (part[some].tolist() for part in (self.ids, self.cosine, self.correlation, self.both, self.effect))
        return tuple(
            Relative(one, cosine if cosines else None, correlation, both, effect if effects else None)
            for one, cosine, correlation, both, effect in zip(*parts, strict=True)
        )

    def nearest(self) -> tuple[Array, Array]:
        """For each feature the one that goes on as it: of those whose correlation, and cosine where there is one, are
        beyond chance the one that correlates most (int64 [F], -1 where there is none), and which entry that is.
        """
        bounds = self.about.bounds
        beyond = self.correlation > bounds.correlation
        if bounds.cosine is not None:
            beyond &= self.cosine > bounds.cosine
        feature = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        entries = np.flatnonzero(beyond)
        mine, first = np.unique(feature[entries], return_index=True)
        ids, where = (np.full(len(self.starts) - 1, -1, np.int64) for _ in range(2))
        where[mine] = entries[first]
        ids[mine] = self.ids[where[mine]]
        return ids, where


@dataclass(frozen=True, kw_only=True, eq=False)
class Lives:
    """Where along a chain of SAEs each of F features begins and ends."""

    chain: tuple[Party, ...]
    """In the model's order."""
    own: Count
    """Which of them the features are of."""
    born: Array
    """int32 [F]: the first of the chain that a line of nearest relatives, one SAE after the other, leads back to."""
    gone: Array
    """int32 [F]: the last one."""

    def of(self, feature: int) -> tuple[Party, Party]:
        """The first and the last."""
        return self.chain[int(self.born[feature])], self.chain[int(self.gone[feature])]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kin:
    """All relatives of one SAE's features, among those of any number of others."""

    model: str
    revision: str | None
    own: Party
    relations: tuple[Relation, ...]
    """In the model's order of the others."""
    lives: Lives | None = None
    """Along the longest chain of SAEs that it was one of."""

    def with_others(self, before: Kin) -> Kin:
        """With the relations to further SAEs that were found before. Raises Mismatch where they are another SAE's."""
        if (before.model, before.revision, before.own.digest) != (self.model, self.revision, self.own.digest):
            raise Mismatch(f"relatives of {before.own.name} are none of {self.own.name}")
        known = {one.other.digest for one in self.relations}
        others = [one for one in before.relations if one.other.digest not in known]
        every = sorted([*self.relations, *others], key=lambda one: (Site.parse(one.other.site), one.other.digest))
        longest = max((one for one in (self.lives, before.lives) if one), key=lambda one: len(one.chain), default=None)
        return replace(self, relations=tuple(every), lives=longest)

    def toward(self, other: Party) -> Relation:
        """Among the features of one other. Raises NotFound."""
        for one in self.relations:
            if one.other.digest == other.digest:
                return one
        raise NotFound(f"no relatives of {self.own.name} among the features of {other.name}: find these first")

    def require(self, feature: int) -> int:
        """Raises NotFound for a feature that there is not."""
        if not 0 <= feature < self.own.d_sae:
            raise NotFound(f"no feature {feature}: {self.own.name} has features 0 to {self.own.d_sae - 1}")
        return feature

    # --- its file -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """One safetensors file, written aside and moved there when it is whole. Raises FileError, StorageFull."""
        from safetensors.numpy import save_file

        target = Path(path)
        tensors = self._tensors
        with written_aside(target) as aside:
            save_file(tensors, aside, seal(_NAME, tensors, asdict(self._said), format=FORMAT))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Kin:
        """What `save` wrote. Raises NotFound, AccessError, CorruptFile."""
        how = {"lacking": "holds no relatives of features", "remedy": _REMEDY, "framework": "np"}
        said, tensors = unsealed(_NAME, Path(path), _Said, format=FORMAT, **how)
        name = shown(path)
        _require_sound(said, tensors, name)
        relations = []
        for number, about in enumerate(said.relations):
            parts = {part: tensors[f"{part}.{number}"] for part in _PARTS}
            said_of = json_of(tensors[f"labels.{number}"].tobytes(), dict[str, str], where=f"{name}: labels")
            labels = {int(one): label for one, label in said_of.items() if one.isdecimal()}
            relations.append(Relation(about=about, labels=labels, **parts))
        lives = None
        if said.chain:
            lives = Lives(chain=said.chain, own=said.place, born=tensors["born"], gone=tensors["gone"])
        return cls(
            model=said.model,
            revision=said.revision,
            own=said.own,
            relations=tuple(relations),
            lives=lives,
        )

    @property
    def digest(self) -> str:
        """Of all that there is, and what it is of."""
        return checksum_of(self._tensors, as_read(asdict(self._said)))

    @property
    def _said(self) -> _Said:
        return _Said(
            model=self.model,
            revision=self.revision,
            own=self.own,
            relations=tuple(one.about for one in self.relations),
            chain=() if self.lives is None else self.lives.chain,
            place=0 if self.lives is None else self.lives.own,
        )

    @property
    def _tensors(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for number, one in enumerate(self.relations):
            found |= {f"{part}.{number}": getattr(one, part) for part in _PARTS}
            labels = json.dumps({str(feature): label for feature, label in sorted(one.labels.items())})
            found[f"labels.{number}"] = np.frombuffer(labels.encode(), np.uint8)
        if self.lives is not None:
            found |= {"born": self.lives.born, "gone": self.lives.gone}
        return {name: np.ascontiguousarray(part) for name, part in found.items()}


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What stands beside the arrays."""

    model: str
    revision: str | None
    own: Party
    relations: tuple[About, ...]
    chain: tuple[Party, ...]
    place: Count


def _require_sound(said: _Said, tensors: Mapping[str, Array], name: str) -> None:
    """That arrays are of the right kinds and lead nowhere else. Raises CorruptFile."""
    forms: dict[str, Form] = {}
    for number, about in enumerate(said.relations):
        starts = tensors.get(f"starts.{number}")
        entries = int(starts[-1]) if starts is not None and starts.ndim == 1 and len(starts) else 0
        forms[f"starts.{number}"] = Form((said.own.d_sae + 1,), "int64", 0, max(0, entries))
        forms[f"ids.{number}"] = Form((entries,), "int32", 0, about.other.d_sae - 1)
        forms[f"both.{number}"] = Form((entries,), "int32", 0, about.text.tokens)
        forms[f"labels.{number}"] = Form((None,), "uint8")
        forms |= {f"{figure}.{number}": Form((entries,)) for figure in FIGURES}
    if said.chain:
        forms |= {part: Form((said.own.d_sae,), "int32", 0, len(said.chain) - 1) for part in ("born", "gone")}
    require_forms(tensors, forms, where=name)
    for number in range(len(said.relations)):
        starts = tensors[f"starts.{number}"]
        if starts[0] != 0 or (np.diff(starts) < 0).any():
            raise CorruptFile(f"{name}: its features overlap: {_REMEDY}")
    if said.chain and said.place >= len(said.chain):
        raise CorruptFile(f"{name}: the SAE is not on its own chain: {_REMEDY}")


def lives(kin: tuple[Kin, ...]) -> tuple[Lives, ...]:
    """Of SAEs in the model's order, each with a relation to the next and to the one before: where along them each
    feature begins and ends, by lines of nearest relatives.

    Raises NotFound where there is no such relation.
    """
    chain = tuple(one.own for one in kin)
    steps = [
        [one.toward(kin[at + by].own).nearest()[0] if 0 <= at + by < len(kin) else None for by in (-1, 1)]
        for at, one in enumerate(kin)
    ]
    born: list[Array] = []
    for at, (back, _) in enumerate(steps):
        born.append(_carried(kin[at], at, back, born[at - 1] if at else None))
    gone: dict[int, Array] = {}
    for at in reversed(range(len(kin))):
        gone[at] = _carried(kin[at], at, steps[at][1], gone.get(at + 1))
    return tuple(Lives(chain=chain, own=at, born=born[at], gone=gone[at]) for at in range(len(kin)))


def _carried(kin: Kin, at: int, nearest: Array | None, there: Array | None) -> Array:
    """Where a line ends that begins here: here, or where that of the nearest relative does."""
    if nearest is None or there is None:
        return np.full(kin.own.d_sae, at, np.int32)
    found: Array = np.where(nearest >= 0, there[np.maximum(nearest, 0)], at).astype(np.int32)
    return found
