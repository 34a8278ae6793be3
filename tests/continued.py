"""What tests of generation share: texts that do not end, edits to write under, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

import gemscope as gs
from by_hand import MAIN, block
from gemscope.activations.editing import Edit
from gemscope.activations.generation import Step
from gemscope.activations.model import LanguageModel
from gemscope.testing import D_MODEL

every_family = pytest.mark.parametrize("family", MAIN)


PROMPTS = ["the thing and", "it was a theory of the other morning", "x"]


NEW = 5


AT = ("all", "prompt", "generated", (2, -1))


def ending_with(*ids: int) -> property:
    return property(lambda _: frozenset(ids))


def vector(seed: int = 0) -> Tensor:
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def push(site: str = "1.res", by: float = 2.0, **options: object) -> Edit:
    return gs.Steer.along(site, vector(), by, **options)


def written(steps: Iterable[Step]) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities, [B, new tokens]."""
    steps = list(steps)
    return torch.stack([step.ids for step in steps], 1), torch.stack([step.logprobs for step in steps], 1)


def edited(model: LanguageModel, text: object, *edits: Edit, **options: object) -> tuple[Tensor, Tensor]:
    options = {"max_new_tokens": NEW} | options
    with model.edited(*edits, rows=options.pop("rows", None)):
        return written(model.stream(text, **options))


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    assert one[0].tolist() == other[0].tolist()
    torch.testing.assert_close(one[1], other[1], atol=2e-4, rtol=1e-4)


def slowly(
    model: LanguageModel, ids: list[int], change: Tensor, chosen: Callable[[int, int], bool], new: int = NEW
) -> list[int]:
    """Greedy, everything anew for every token: `change` added behind block 1 wherever `chosen(position, prompt)`. The
    first position and special tokens are left alone.
    """
    prompt, ids = len(ids), list(ids)

    def add(_: object, __: object, output: object) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        where = [i > 0 and id_ not in model.special_ids and chosen(i, prompt) for i, id_ in enumerate(ids)]
        hidden = hidden + torch.tensor(where)[None, :, None] * change
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block(model, 1).register_forward_hook(add)
    try:
        for _ in range(new):
            ids.append(int(model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    finally:
        handle.remove()
    return ids[prompt:]
