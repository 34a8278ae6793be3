"""Runs of the trainer as tests give them: rows with planted directions, a harvest that no model computed, a power cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store
from gemscope.activations.writer import Writer
from gemscope.text.tokens import Tokens
from gemscope.training import run as running
from gemscope.training.config import TrainConfig
from gemscope.training.lesson import Lesson
from gemscope.training.source import StoreSource

SITE = Site(3, "res")


def store_of(rows: Tensor | Mapping[Site, Tensor], folder: Path, site: Site = SITE, piece: int = 1 << 14) -> Store:
    """A harvest of rows that no model computed, at a site or at several."""
    sites = {site: rows} if isinstance(rows, Tensor) else rows
    rows = next(iter(sites.values()))
    with Writer(folder) as writer:
        with writer.piece() as shards:
            for start in range(0, len(rows), piece):
                ids = torch.arange(len(rows[start : start + piece]))[None]
                counted = torch.ones_like(ids, dtype=torch.bool)
                for one, values in sites.items():
                    part = values[None, start : start + piece]
                    shards.add(Activations(part, counted, Tokens(ids, counted, counted), one, "planted"))
        return writer.finish(
            Manifest(
                format=FORMAT,
                model="planted",
                revision=None,
                dtype="float32",
                sites={},
                read=0,
                length=piece,
                corpus="planted",
                corpus_digest="0",
                versions={},
            ),
            pieces=1,
        )


def planted(n: int, *, d: int, features: int, active: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are sums of random directions (unit rows of the second value), `active` of them at a time."""
    directions = torch.randn(features, d, generator=torch.Generator().manual_seed(1234))
    directions /= directions.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    p = torch.full((features,), active / features)
    rows = torch.empty(n, d)
    for part in rows.split(1 << 14):
        on = torch.rand(len(part), features, generator=generator) < p
        size = (1 + 0.5 * torch.randn(len(part), features, generator=generator)).clamp(min=0.1)
        part.copy_((on * size) @ directions)
    return rows, directions


def lesson_of(store: Store, config: TrainConfig, to: Path) -> Lesson:
    return Lesson(StoreSource(store, SITE), {"": config}, to, None, ())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class PowerCut(BaseException):
    pass


def cut_off_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run dies as it takes this step."""
    taken = running.Run.advance

    def dies(self: running.Run, x: Tensor, y: Tensor) -> object:
        if self.done == step:
            raise PowerCut
        return taken(self, x, y)

    monkeypatch.setattr(running.Run, "advance", dies)


class Pairs:
    """Rows of one site and what another makes of them, in memory: any `Source` will do."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.reads, self.writes = (Site.parse("3.transcoder"),), (Site.parse("3.mlp"),)
        self.widths = ((x.shape[1],), (y.shape[1],))
        self.identity: Mapping[str, Any] = {"rows": len(x)}
        self.facts: Mapping[str, Any] = {"model": "planted"}

    def batches(self, batch: int, seed: int) -> Any:
        return Drawn(self, batch, seed)


class Drawn:
    def __init__(self, pairs: Pairs, batch: int, seed: int) -> None:
        self.pairs, self.batch, self.seed = pairs, batch, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1000 * step)
        chosen = torch.randint(len(self.pairs.x), (self.batch,), generator=generator)
        return self.pairs.x[chosen], self.pairs.y[chosen]

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        return self.pairs.x[:count], self.pairs.y[:count]
