"""Features as points of a plane, so that those whose decoder directions are alike lie near each other.

t-SNE (van der Maaten, Hinton 2008; Barnes-Hut, 2014) by scikit-learn, of the cosines that `neighbours.py` finds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemscope.errors import InputError, MissingDependency
from gemscope.features.neighbours import nearest
from gemscope.features.sliced import Sliced
from gemscope.shapes import Float

PERPLEXITY = 30.0
"""About how many neighbours of each feature count."""
FEW = 100
"""Features below which two principal components are as good, and t-SNE has too few neighbours to go by."""
SEED = 0
FULL = 65535
"""Where the longer side of the map ends; places are whole numbers from 0."""
_NEAREST, _AMONG = 10, 50

Array = np.ndarray[Any, np.dtype[Any]]
Places = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True)
class Plane:
    """Where each feature lies, and how it came there."""

    places: Places
    """[F, 2] x to the right, y upwards."""
    method: str
    """In words."""
    kept: float
    """Share of the ten features nearest by cosine that are among the fifty nearest on the map, on average."""


def plane(W_dec: Float[Tensor, "F O"] | Sliced, *, seed: int = SEED) -> Plane:
    """Places features by the directions that they write. The same weights and seed give the same places on one kind of
    machine with one version of scikit-learn; elsewhere float32 sums differ, and with them where what lies.

    Raises MissingDependency without scikit-learn where there are FEW features or more, InputError for fewer than two.
    """
    W_dec = Sliced.of(W_dec)
    count = len(W_dec)
    if count < 2:
        raise InputError(f"{count} features given: a map needs at least two")
    axes = _axes(W_dec)
    if count < FEW:
        return _plane(axes, "two principal components of the decoder's directions", W_dec)
    manifold = _manifold()
    k = min(count - 1, int(3 * PERPLEXITY) + 1)
    near = _graph(*nearest(W_dec, k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it does by default today and will not tomorrow
        found = manifold.TSNE(
            metric="precomputed",
            perplexity=min(PERPLEXITY, (count - 1) / 3),
            init=(axes / axes[:, 0].std() * 1e-4).astype(np.float32),
            random_state=seed,
            n_jobs=1,
        ).fit_transform(near)
    said = f"t-SNE of decoder cosines, perplexity {PERPLEXITY:g}, scikit-learn {version('scikit-learn')}, seed {seed}"
    return _plane(found, said, W_dec)


def _manifold() -> Any:
    try:
        from sklearn import manifold
    except ImportError as error:
        raise MissingDependency('a map of features needs scikit-learn: pip install "gemscope[map]"') from error
    return manifold


def _axes(W_dec: Sliced) -> Array:
    """[F, 2] the first two principal components of unit rows, each with its largest weight above 0."""
    gram = torch.zeros((W_dec.shape[1],) * 2, dtype=torch.float64)
    total = torch.zeros(W_dec.shape[1], dtype=torch.float64)
    blocks = [slice(start, start + 8192) for start in range(0, len(W_dec), 8192)]
    for some in blocks:
        unit = _units(W_dec[some])
        gram += unit.T @ unit
        total += unit.sum(0)
    mean = total / len(W_dec)
    vectors = torch.linalg.eigh(gram - len(W_dec) * torch.outer(mean, mean)).eigenvectors.flip(1)[:, :2]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    found = torch.cat([(_units(W_dec[some]) - mean) @ vectors for some in blocks]).numpy()
    if found.shape[1] < 2:
        found = np.concatenate([found, np.zeros_like(found)], 1)
    return found if float(found[:, 0].std()) > 0 else found + np.linspace(0, 1e-9, len(found))[:, None]


def _units(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.to("cpu", torch.float64), dim=-1)


def _graph(ids: Tensor, cosines: Tensor) -> Any:
    """Distances 1 - cosine as scikit-learn wants them: sparse, each row ascending, itself first. Where a feature has
    fewer neighbours than are asked for, others are put at the distance of a right angle.
    """
    from scipy.sparse import csr_matrix

    count, k = ids.shape
    others, far = ids.cpu().numpy().astype(np.int64), 1.0 - cosines.cpu().numpy().astype(np.float64)
    for row in np.flatnonzero((others < 0).any(1)):
        there = others[row] >= 0
        named = {int(row), *others[row][there].tolist()}
        spare = (other for other in range(count) if other not in named)
        others[row, ~there] = [next(spare) for _ in range(k - int(there.sum()))]
        far[row, ~there] = 1.0
    own = np.arange(count)[:, None]
    columns = np.concatenate([own, others], 1)
    distances = np.concatenate([np.zeros((count, 1)), np.maximum(far, 1e-12)], 1)
    return csr_matrix(
        (distances.ravel(), columns.ravel(), np.arange(0, count * (k + 1) + 1, k + 1)), shape=(count, count)
    )


def _plane(found: Array, method: str, W_dec: Sliced) -> Plane:
    low, high = found.min(0), found.max(0)
    spread = float((high - low).max()) or 1.0
    places = np.rint((found - low + (spread - (high - low)) / 2) / spread * FULL).clip(0, FULL).astype(np.uint16)
    return Plane(places, method, kept(places, W_dec))


def kept(places: Places, W_dec: Float[Tensor, "F O"] | Sliced) -> float:
    """Share of each feature's ten nearest by cosine that are among its fifty nearest on the map, on average."""
    k = min(_NEAREST, len(places) - 1)
    ids = nearest(W_dec, k)[0].cpu().numpy()
    points = torch.from_numpy(places.astype(np.float32))
    among = min(_AMONG + 1, len(points))
    shares = []
    for start in range(0, len(points), 1024):
        some = points[start : start + 1024]
        close = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        on_map = close.topk(among, largest=False).indices.numpy()
        there = ids[start : start + 1024]
        hits = (there[:, :, None] == on_map[:, None]).any(-1) & (there >= 0)
        shares.append(hits.sum(1) / np.maximum(1, (there >= 0).sum(1)))
    return float(np.concatenate(shares).mean())
