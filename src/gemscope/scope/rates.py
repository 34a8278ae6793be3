"""How fast this machine is at what a scope needs, by doing a little of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import GemscopeError, InputError
from gemscope.features.kernels.choice import place_for
from gemscope.progress import Progress, silent
from gemscope.scope.plan import Pass, Rates
from gemscope.scope.recipe import Aim, ScopeRecipe
from gemscope.text.corpus import Corpus
from gemscope.training.fold import Scale
from gemscope.training.run import Run

_ROWS = 8
"""Rows of text that the model reads, at most, each of the two times: the first is not counted."""
_STEPS = 3
"""Steps of each SAE that are counted; one before them is not."""


def measured(
    model: LanguageModel,
    corpus: Corpus,
    recipe: ScopeRecipe,
    passes: Sequence[Pass],
    *,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> Rates:
    """Of the deepest pass of the model, of its logits, and of a few steps of each kind of SAE, on the rows that it read
    at that kind of site, at the L0 that is aimed at.
    """
    length, batch = recipe.reading.length, min(_ROWS, recipe.reading.batch)
    deepest = max(passes, key=lambda one: (max(one.sites), len(one.sites)))
    kinds = {_kind(aim, model): aim for one in passes for aim in one.aims}
    sites = set(deepest.sites) | {site for aim in kinds.values() for site in aim.sites}
    with progress("measure a short spell", 2 + len(kinds), "") as advance:
        rows = list(islice(model.rows(corpus, length=length, batch=batch), 2))
        model.capture(rows[0], deepest.sites)
        reads, _ = _speed(lambda: model.capture(rows[-1], deepest.sites), int(rows[-1].real.sum()))
        advance(1)
        found = model.capture(rows[-1], sites)
        values = {site: found[site].rows.float().cpu() for site in sites}
        predicts, _ = _speed(lambda: model.logits(rows[-1]), int(rows[-1].real.sum()))
        advance(1)
        learns: dict[tuple[Any, ...], float] = {}
        for kind, aim in kinds.items():
            learns[kind] = _learning(aim, values, place_for(device))
            advance(1)
    return Rates(reads, predicts, lambda aim: learns[_kind(aim, model)])


def _kind(aim: Aim, model: LanguageModel) -> tuple[Any, ...]:
    """Of SAEs that take the same time."""
    return model.width(aim.site), model.width(aim.site_out), aim.site == aim.site_out, str(aim.config)


def _learning(aim: Aim, values: Mapping[Site, Tensor], device: torch.device) -> float:
    """Rows per second. Of one that cannot be trained on these rows, those of a machine that is infinitely fast: it will
    fail.
    """
    config, same = replace(aim.config, anneal=0.0), aim.site == aim.site_out
    try:
        x, y = (_batch(values[site], config.batch) for site in (aim.site, aim.site_out))
        inward = Scale.of(x, (x.shape[1],), centre=config.centre)
        outward = inward if same else Scale.of(y, (y.shape[1],), centre=config.centre)
        x = inward(x).to(device)
        y = x if same else outward(y).to(device)
        run = Run(config, inward, outward, same=same, device=device)
        run.begin(x)
        run.advance(x, y)

        def steps() -> None:
            for _ in range(_STEPS):
                run.advance(x, y)

        return _speed(steps, _STEPS * config.batch)[0]
    except GemscopeError:
        return float("inf")


def _batch(rows: Tensor, count: int) -> Tensor:
    """So many rows, those that there are again and again."""
    if len(rows) < 2:
        raise InputError("no rows to learn from")
    return rows[torch.arange(count) % len(rows)]


def _speed(work: Callable[[], object], units: int) -> tuple[float, float]:
    """Units per second, and the seconds."""
    since = time.perf_counter()
    work()
    seconds = max(time.perf_counter() - since, 1e-6)
    return units / seconds, seconds
