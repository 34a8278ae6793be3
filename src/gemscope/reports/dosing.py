"""Dose and response: the same edit at several strengths, and what each does to a token's logit and to the text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import Given, labels_of
from gemscope.edits import defaults
from gemscope.errors import InputError, TokenOutOfRange
from gemscope.progress import Progress, silent
from gemscope.reports.dose import Dose, Response
from gemscope.reports.writing import Writing, perplexity, positions_of, repetition
from gemscope.shapes import Int
from gemscope.text.chat import OneText

_ROWS = 16
"""Texts written in one batch, about: more are no faster on a processor."""


def dose(
    model: LanguageModel,
    text: OneText,
    make: Callable[[float], Sequence[Edit]],
    strengths: Sequence[float],
    *,
    target: int | Sequence[int],
    n: int = defaults.SWEPT,
    max_new_tokens: int = defaults.TOKENS,
    temperature: float = defaults.TEMPERATURE,
    seed: int = defaults.SEED,
    control: Callable[[float], Sequence[Edit]] | None = None,
    control_name: str | None = None,
    atlas: Given = None,
    progress: Progress = silent,
    check: Callable[[], None] = lambda: None,
) -> Dose:
    """What `make(strength)` does for each of some strengths, and what `control(strength)` does beside it.

    All write `n` texts with the same dice. The target's logit is taken after the prompt; where edits act on generated
    tokens alone, the prompt's last token counts as one of these, or nothing would be seen. Features are named by an
    atlas of their SAE (None: the bundled one, where it is that SAE's). `check` is called as each block of the model
    runs; what it raises ends the work.

    Raises InputError, EmptyText, TextTooLong, TokenOutOfRange, SiteNotFound, Mismatch, and NotFinite where an edit
    leaves no probabilities.
    """
    if not strengths:
        raise InputError("no strengths given: name at least one")
    for strength in strengths:
        if not math.isfinite(strength):
            raise InputError(f"strength {strength}: expected a finite number")
    ids = _target_ids(model, target)
    asked: list[tuple[float | None, tuple[Edit, ...]]] = [(None, ())]
    asked += [(strength, tuple(make(strength))) for strength in strengths]
    if control is not None:
        asked += [(strength, tuple(control(strength))) for strength in strengths]

    labels = iter(labels_of([edit for _, edits in asked for edit in edits], atlas))
    each, found = max(1, _ROWS // max(1, n)), []
    groups = [
        Writing(
            model,
            text,
            [edits for _, edits in asked[first : first + each]],
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            check=check,
        )
        for first in range(0, len(asked), each)
    ]
    with progress("write", max_new_tokens * len(groups), "tokens") as advance:
        for writing in groups:
            for _ in writing:
                advance(1)
            found += [_written(writing, variant, ids) for variant in range(len(writing.variants))]
    (prompt,) = groups[0].prompts[:1]
    with model.watched(check):
        logits = [_after(model, prompt, ids, edits) for _, edits in asked]
    responses = [
        Response(
            strength=strength,
            edits=tuple(map(str, edits)),
            strengths=tuple(getattr(edit, "strength", None) for edit in edits),
            logit=logit,
            logit_change=logit - logits[0][0],
            logprob=logprob,
            logprob_change=logprob - logits[0][1],
            perplexity=odd,
            repetition=again,
            written=share,
            texts=texts,
            labels=tuple(islice(labels, len(edits))),
        )
        for (strength, edits), (logit, logprob), (odd, again, share, texts) in zip(asked, logits, found, strict=True)
    ]
    last = 1 + len(strengths)
    return Dose(
        model=model.name,
        prompt=text if isinstance(text, str) else "".join(model.texts(prompt[0].tolist())),
        target=tuple(model.strings(ids)),
        target_ids=tuple(ids),
        unedited=responses[0],
        responses=tuple(responses[1:last]),
        control=None if control is None else control_name or "another edit",
        controls=tuple(responses[last:]),
        n=n,
        temperature=float(temperature),
        seed=seed,
        max_new_tokens=max_new_tokens,
        at=positions_of(asked[1][1]),
        computed=model.computed,
    )


def _target_ids(model: LanguageModel, target: int | Sequence[int]) -> list[int]:
    ids = [target] if isinstance(target, int) else list(dict.fromkeys(map(int, target)))
    if not ids:
        raise InputError("no target token given: name at least one")
    for id_ in ids:
        if not 0 <= id_ < model.vocab:
            raise TokenOutOfRange(f"no token {id_}: {model.name} has tokens 0 to {model.vocab - 1}")
    return ids


def _written(writing: Writing, variant: int, target: Sequence[int]) -> tuple[float, float, float, tuple[str, ...]]:
    """Perplexity, repetition and share of target tokens of a variant's texts, and the texts."""
    rows = writing.of(variant)
    every = [id_ for row in rows for id_ in row.ids]
    scores = [score for line in writing.scored(variant, ()) for score in line]
    return (
        perplexity(scores),
        sum(repetition(row.ids) for row in rows) / len(rows),
        sum(id_ in target for id_ in every) / len(every),
        tuple(row.text for row in rows),
    )


@torch.no_grad()
def _after(
    model: LanguageModel, prompt: Int[Tensor, "1 T"], target: Sequence[int], edits: Sequence[Edit]
) -> tuple[float, float]:
    """The target's logit and log-probability after the prompt."""
    columns = prompt.shape[-1]
    if edits and all(edit.at == "generated" for edit in edits if isinstance(edit.at, str)):
        columns -= 1
    with ExitStack() as stack:
        if edits:
            stack.enter_context(model.edited(*edits))
        logits = model.logits(prompt, prompt=columns)[0, -1].float().cpu()
    logit = logits[list(target)].logsumexp(0).item()
    logprob = logits.log_softmax(-1)[list(target)].logsumexp(0).item()
    return logit, logprob
