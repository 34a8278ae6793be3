"""Models that are in memory already: which model of transformers' lies in what nnsight, PEFT and TransformerLens have
made of one, its tokenizer, and what it is called. None of these libraries is imported: what is theirs is told by where
its class comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gemscope.activations import adapters, transformer_lens
from gemscope.activations.hooked import Hooked
from gemscope.errors import InputError


@dataclass(frozen=True)
class Handed:
    """What is known of a model that was handed over."""

    hf: nn.Module
    tokenizer: Any
    """The one that it carries; None where it carries none."""
    source: str | None
    """What it was loaded by; None where it does not say."""
    revision: str | None
    adapters: tuple[str, ...]
    """Those of PEFT's that are active on it."""

    @classmethod
    def of(cls, given: object) -> Handed:
        """Raises what `unwrapped` raises."""
        found = list(_unwrapping(given))
        config = getattr(found[-1], "config", None)
        # Not TransformerLens's: it has that one put BOS in front of every text, whatever the model's own does.
        tokenizers = (getattr(one, "tokenizer", None) for one in found if _is_of(one, "nnsight"))
        return cls(
            hf=found[-1],
            tokenizer=next((one for one in tokenizers if one is not None), None),
            source=getattr(config, "_name_or_path", None) or None,
            revision=getattr(config, "_commit_hash", None),
            adapters=next(filter(None, (adapters.active(one) for one in found if isinstance(one, nn.Module))), ()),
        )

    @property
    def name(self) -> str | None:
        """What it is called: by what it was loaded by, and by its adapters, which make another model of it."""
        said = f" with the adapter {' and '.join(self.adapters)}" if self.adapters else ""
        return f"{self.source}{said}" if self.source else None


def unwrapped(given: object) -> nn.Module:
    """The model of transformers' in what others have wrapped it in, with what they have done to it; one that nothing
    wraps as it is. One of nnsight's that has no weights yet loads them.

    Raises InputError for what is no model, and for adapters that are no part of theirs.
    """
    *_, inside = _unwrapping(given)
    return inside  # type: ignore[no-any-return]


def _unwrapping(given: Any) -> Iterator[Any]:
    """From the outermost wrapper to the model inside."""
    yield given
    while (inside := _within(given)) is not given:
        given = inside
        yield given
    if not isinstance(given, nn.Module):
        raise InputError(
            f"a {type(given).__name__} is no model: expected a causal language model of transformers, or one of "
            "nnsight's, PEFT's or TransformerLens's"
        )


def _within(given: Any) -> Any:
    """What lies in the outermost wrapper; the model itself where there is none."""
    if _is_of(given, "nnsight"):
        if getattr(given, "dispatched", True) is False:
            given.dispatch()
        return given._module
    if transformer_lens.is_bridge(given):
        return given.original_model
    if transformer_lens.is_hooked(given):
        return Hooked(given)
    return adapters.unwrapped(given) if isinstance(given, nn.Module) else given


def _is_of(given: object, library: str) -> bool:
    return any(kind.__module__.partition(".")[0] == library for kind in type(given).__mro__)
