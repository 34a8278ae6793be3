"""What a pass over text gathers for one SAE, and what is asked of it. Reading is the work of `reading.py`; what becomes
of what was gathered is that of `compose.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gemscope.atlas.describe.reading import Batch, Found
from gemscope.atlas.files.manifest import Part
from gemscope.checked import Count, Form, Positive, require_forms, values_of
from gemscope.errors import CorruptFile, InputError
from gemscope.features.cofiring import Sample
from gemscope.features.examples import Examples, Firings
from gemscope.features.held_out import HeldOut
from gemscope.features.norms import Norms
from gemscope.features.tally import Tally

Array = np.ndarray[Any, np.dtype[Any]]

_GROWING = ("sample.", "held_out.", "examples.top.", "examples.drawn.")
_NORMS = "norms.counts"
"""What an older version did not gather."""
_ROOM = 1 << 24
"""Tokens and entries, at least, in the sample of tokens that co-activation is counted on."""


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """What an atlas holds of each feature."""

    top: Positive = 20
    """Strongest examples."""
    each: Count = 5
    """Examples from each range of activations (eighths of the power of two above the maximum; half or more in use)."""
    before: Count = 40
    """Tokens shown in front of an example's own."""
    after: Count = 23
    """Tokens shown behind it."""
    logits: Count = 10
    """Promoted tokens, and as many suppressed ones."""
    effect: Count = 160
    """Tokens, about, at the beginning of the text, over which the effect of the site at which the SAE writes is
    measured: what features promote is told by it. It takes two backward passes over them for each coordinate of the
    last hidden states. 0: none is measured.
    """
    neighbours: Count = 20
    """Features closest by decoder cosine."""
    partners: Count = 20
    """Features that fire on the same tokens."""
    length: Positive = 256
    """Tokens per row of text."""
    batch: Positive = 16
    """Rows per pass of the model."""
    pool: Count = 1 << 16
    """Tokens, at most, of the rows that are held out to score labels on: one row in sixteen gives no examples. 0: all
    rows do, and nothing can be scored.
    """

    def __post_init__(self) -> None:
        vars(self).update(values_of(type(self), vars(self), where="the settings"))
        if self.before + self.after >= self.length:
            raise InputError(
                f"before={self.before} and after={self.after} reach beyond a row of length={self.length} tokens"
            )


class Statistics:
    """What a pass gathers for one SAE."""

    def __init__(self, d_sae: int, config: DescribeConfig) -> None:
        self.tally = Tally(d_sae)
        self.examples = Examples(d_sae, top=config.top, each=config.each, before=config.before, after=config.after)
        self.sample = Sample(d_sae, max(_ROOM, 128 * d_sae) if config.partners else 0)
        self.held_out = HeldOut(d_sae, config.length, -(-config.pool // config.length))
        self.norms = Norms()

    def add(self, batch: Batch, found: Found, keys: Array, first: int) -> None:
        """One batch, whose rows start at flat position `first` of the corpus."""
        features = found.features
        self.tally.add(features)
        if found.norms is not None:
            self.norms.add(found.norms)
        entries = features.tokens.numpy()
        ids = features.features.numpy().astype(np.int64)
        flat = keys.reshape(-1)
        firings = Firings(
            features=ids,
            values=features.values.numpy(),
            tokens=found.tokens[entries],
            key=flat[found.tokens][entries],
            first=first,
            rows=len(batch.ids),
            length=batch.ids.shape[1],
            d_sae=features.d_sae,
        )
        if self.held_out.room:
            counted = np.zeros(batch.ids.size, np.bool_)
            counted[found.tokens] = True
            firings = firings.outside(self.held_out.add(batch.ids, counted.reshape(batch.ids.shape), firings))
        self.examples.add(firings, self.tally.exponents.numpy())
        if self.sample.room:
            self.sample.add(flat[found.tokens], found.tokens + first, features.offsets.diff().numpy(), ids)

    def merge(self, other: Statistics, shift: int) -> None:
        """What another text gave, whose positions start at `shift` here."""
        self.tally.merge(other.tally)
        self.examples.merge(other.examples, self.tally.exponents.numpy(), shift)
        self.sample.merge(other.sample, shift)
        self.held_out.merge(other.held_out, shift)
        self.norms.merge(other.norms)

    @property
    def median_norm(self) -> float | None:
        """To four digits; None where it was not taken of every counted token."""
        return float(f"{self.norms.median:.4g}") if self.norms.seen == self.tally.tokens > 0 else None

    def sums(self) -> dict[str, Array]:
        """The tally, the norms and the sample: what merging needs beyond an atlas's pages."""
        tally = {f"tally.{name}": value.numpy() for name, value in self.tally.state().items()}
        sample = {f"sample.{name}": value for name, value in self.sample.state().items()}
        return tally | sample | {_NORMS: self.norms.counts}

    def restore_sums(self, state: Mapping[str, Array]) -> None:
        """What `sums` gave. Raises CorruptFile for what cannot have been gathered."""
        state = {_NORMS: Norms().counts, **state}
        self._require(self.sums(), state)
        try:
            self.tally = Tally.of({name: torch.from_numpy(value) for name, value in under("tally", state).items()})
            self.sample = Sample.of(under("sample", state), self.tally.d_sae)
            self.norms = Norms.of(state[_NORMS], self.tally.tokens)
        except ValueError as error:
            raise CorruptFile(error) from error

    def _require(self, known: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """The same arrays as those that are known, of which only samples are as long as they happen to be."""
        forms = {
            name: Form((None, *one.shape[1:]) if name.startswith(_GROWING) else one.shape, str(one.dtype))
            for name, one in known.items()
        }
        require_forms(state, forms)

    def state(self) -> dict[str, Array]:
        """All of it, to be stored."""
        parts = {"examples": self.examples.state(), "held_out": self.held_out.state()}
        return self.sums() | {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}

    def restore(self, state: Mapping[str, Array], end: int) -> None:
        """What `state` gave of a text that ends at this flat position. Raises CorruptFile."""
        state = {_NORMS: Norms().counts, **state}
        self._require(self.state(), state)
        self.restore_sums({name: one for name, one in state.items() if name in self.sums()})
        try:
            self.examples.restore(under("examples", state), self.tally.exponents.numpy(), end)
            self.held_out.restore(under("held_out", state), end)
        except ValueError as error:
            raise CorruptFile(error) from error


def under(prefix: str, state: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(f"{prefix}."): state[name] for name in state if name.startswith(f"{prefix}.")}


@dataclass(frozen=True)
class Described:
    """All that an atlas is made of, weights apart."""

    statistics: Statistics
    parts: Sequence[Part]
    blocks: Callable[[], Iterator[Array]]
    """The corpus: ids [R, length], some rows at a time."""
    starts: Callable[[], Iterator[tuple[int, str, str]]]
    """Its documents: flat position of the first token, source, licence."""
    bos: bool
    """Whether each row opens with a token that is no document's."""
