"""Rows with known features at one site or several, as a source that a run reads: no model, no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.training.shuffle import Shuffle


@dataclass(frozen=True)
class Given:
    """A `Source` of rows that lie in memory."""

    x: Tensor
    y: Tensor
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    widths: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def identity(self) -> dict[str, Any]:
        return {"reads": [str(site) for site in self.reads], "rows": len(self.x)}

    @property
    def facts(self) -> dict[str, Any]:
        return {"model": "planted", "corpus": "planted", "context_size": 128}

    def batches(self, batch: int, seed: int) -> GivenBatches:
        return GivenBatches(self, Shuffle(len(self.x), batch, seed))


@dataclass(frozen=True)
class GivenBatches:
    """In the order of a shuffle."""

    source: Given
    shuffle: Shuffle

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.shuffle[step]
        x = self.source.x[index]
        return x, (x if self.source.y is self.source.x else self.source.y[index])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        x = self.source.x[:count]
        return x, (x if self.source.y is self.source.x else self.source.y[:count])


def directions(features: int, width: int, seed: int) -> Tensor:
    """Random ones, of norm 1."""
    rows = torch.randn(features, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


def strengths(rows: int, features: int, active: float, seed: int) -> Tensor:
    """Of each feature on each row, `active` of them at a time on average."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(rows, features, generator=generator) < active / features
    size = (1 + 0.5 * torch.randn(rows, features, generator=generator)).clamp(min=0.1)
    return on * size


def best_cosines(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Of each true direction the best cosine that a found row has with it, and which row that is."""
    unit = found / found.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    best = ((truth / truth.norm(dim=-1, keepdim=True)) @ unit.T).max(dim=-1)
    return best.values, best.indices


def beside(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=-1)
