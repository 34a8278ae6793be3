"""SAEs and activations that behave like Gemma Scope's, of any size, made from a seed: what the benchmarks run on.
Weights are written to a cache beside this file, tile by tile, and come back mapped from the disk. Timing is elsewhere.

What makes them realistic is what decides how much work exact encoding is:

- The dictionary is correlated: features come in families that share a direction. W_enc is W_dec's transpose with noise,
  columns of norm 1.
- Features fire at rates that fall as Zipf's law says, with log-normal strengths.
- Activations have a mean as long as the rest of them, most of it in a few rogue dimensions, and b_enc takes it out
  again; noise lies on top.
- Thresholds differ from feature to feature. One factor for all of them is calibrated so that L0 is met on fresh
  activations, which leaves as many entries near their thresholds as interference makes there. `near` counts them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CACHE = Path(__file__).resolve().parent / ".cache"
FILE = "params.safetensors"
"""Gemma Scope 2's name and layout: `gs.load_sae(folder)` reads it."""

_RECIPE = 1
"""Raise it when anything below changes what is made: what lies in the cache is of one recipe."""
_TILE = 2048
"""Features made at a time."""
_FAMILY = 32
"""Features that share a direction."""
_SHARED = 0.35
"""How much of a decoder row is its family's direction; the rest, its own, has length 1."""
_ENCODER_NOISE = 0.3
"""Length of what an encoder column has beside its decoder row."""
_RATE = 1.45
"""Features planted in a token, for every one that the thresholds let through."""
_STRENGTH, _STRENGTH_SPREAD = 0.92, 0.55
"""Median strength of a feature that fires; standard deviation of its logarithm."""
_THRESHOLD_SPREAD = 0.06
_MEAN, _ROGUE, _ROGUE_SHARE = 11.0, 6, 0.85
"""Length of the mean activation, its rogue dimensions, and their share of its squared length."""
_NOISE = 6.0
"""Length of the noise in a token."""
_CALIBRATION_TOKENS = 2048
_BINS = np.concatenate([[-np.inf], np.linspace(0, 8, 80_001), [np.inf]])


def sae_folder(d_model: int, d_sae: int, *, l0: float = 70.0, seed: int = 0, cache: Path = CACHE) -> Path:
    """A folder that holds such an SAE, made when it is not there yet. Memory holds a tile, and pages of the
    file that the system can drop."""
    folder = cache / f"{d_model}x{d_sae}-l0-{l0:g}-seed-{seed}-recipe-{_RECIPE}"
    if (folder / FILE).exists():
        return folder
    print(f"making {folder.name}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    aside = folder / f"{FILE}.{os.getpid()}.new"
    try:
        parts = _mapped(aside, _shapes(d_model, d_sae))
        parts["b_dec"][:] = mean(d_model, seed)
        for tile, (start, W_dec, W_enc, b_enc) in enumerate(_tiles(d_model, d_sae, seed)):
            stop = start + len(W_dec)
            parts["W_dec"][start:stop], parts["W_enc"][:, start:stop], parts["b_enc"][start:stop] = (
                W_dec,
                W_enc.T,
                b_enc,
            )
            if tile % 16 == 15:  # what has been written need not stay in memory
                parts = _remapped(aside, parts)
        parts = _remapped(aside, parts)
        weights = {name: torch.from_numpy(part) for name, part in parts.items()}
        x = activations(weights["W_dec"], _CALIBRATION_TOKENS, l0=l0, seed=seed, stream=1)
        parts["threshold"][:] = thresholds(weights["W_enc"], weights["b_enc"], x, l0, seed=seed).numpy()
        for part in parts.values():
            part.flush()
        aside.replace(folder / FILE)
    finally:
        aside.unlink(missing_ok=True)
    return folder


def mapped(folder: Path) -> dict[str, Tensor]:
    """Mapped from the disk, by name: W_enc [d_model, d_sae], b_enc, threshold, W_dec [d_sae, d_model], b_dec."""
    with (folder / FILE).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = {name: tuple(one["shape"]) for name, one in header.items()}
    return {name: torch.from_numpy(part) for name, part in _mapped(folder / FILE, shapes).items()}


def activations(W_dec: Tensor, tokens: int, *, l0: float = 70.0, seed: int = 0, stream: int = 2) -> Tensor:
    """[tokens, d_model] as an SAE of these decoder rows, made with this `l0` and `seed`, would read. Other tokens for
    another `stream`."""
    d_sae, d_model = W_dec.shape
    x = torch.from_numpy(_generator(seed, 10 + stream).standard_normal((tokens, d_model), dtype=np.float32))
    x.mul_(_NOISE / math.sqrt(d_model)).add_(torch.from_numpy(mean(d_model, seed)))
    rates = _rates(d_sae, l0, seed)
    for start in range(0, d_sae, _TILE):
        draw = _generator(seed, 10 + stream, start)
        rate = rates[start : start + _TILE]
        ids = np.repeat(np.arange(len(rate)), draw.binomial(tokens, rate))
        at = draw.integers(0, tokens, len(ids))
        strength = np.exp(draw.normal(math.log(_STRENGTH), _STRENGTH_SPREAD, len(ids))).astype(np.float32)
        order = np.argsort(at, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=tokens))])
        x += F.embedding_bag(
            torch.from_numpy(ids[order]),
            W_dec[start : start + _TILE],
            torch.from_numpy(offsets),
            mode="sum",
            per_sample_weights=torch.from_numpy(strength[order]),
            include_last_offset=True,
        )
    return x


def mean(d_model: int, seed: int) -> np.ndarray:
    """The mean activation [d_model]: a few rogue dimensions, and a little everywhere else."""
    draw = _generator(seed, 0)
    rogue = draw.choice(d_model, _ROGUE, replace=False)
    parts = [np.zeros(d_model), draw.standard_normal(d_model)]
    parts[0][rogue] = draw.choice([-1.0, 1.0], _ROGUE) * draw.uniform(0.5, 1.5, _ROGUE)
    lengths = [math.sqrt(_ROGUE_SHARE), math.sqrt(1 - _ROGUE_SHARE)]
    whole = sum(length * part / np.linalg.norm(part) for length, part in zip(lengths, parts, strict=True))
    return (_MEAN * whole).astype(np.float32)


def thresholds(W_enc: Tensor, b_enc: Tensor, x: Tensor, l0: float, *, seed: int = 0) -> Tensor:
    """One threshold a feature [d_sae], never below 0, so that `l0` of them are exceeded per token of `x` on average."""
    d_sae = W_enc.shape[1]
    spread = _generator(seed, 2).normal(0, _THRESHOLD_SPREAD, d_sae)
    base = torch.from_numpy(np.exp(spread).astype(np.float32))
    counts = np.zeros(len(_BINS) - 1, dtype=np.int64)
    for tile in range(0, d_sae, _TILE):
        part = slice(tile, tile + _TILE)
        ratio = torch.addmm(b_enc[part], x, W_enc[:, part]).div_(base[part])
        counts += np.histogram(ratio.numpy(), _BINS)[0]
    above = np.cumsum(counts[::-1])[::-1]  # above[i]: entries in bin i or a later one
    factor = _BINS[max(1, int(np.searchsorted(-above, -l0 * len(x))))]
    return base * float(factor)


def near(weights: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    """What decides how hard the weights are to encode with, per token of `x`: L0, entries within 0.01 of their
    thresholds, entries that a rigorous bfloat16 prefilter lets through, and the spread of all pre-activations."""
    l0 = close = candidates = squares = 0.0
    x_low = x.bfloat16().float()
    x_norm, x_off = x.norm(dim=1), (x - x_low).norm(dim=1)
    for start in range(0, weights["W_enc"].shape[1], _TILE):
        part = slice(start, start + _TILE)
        W = weights["W_enc"][:, part]
        from_threshold = torch.addmm(weights["b_enc"][part], x, W)
        squares += from_threshold.square().sum().item()
        from_threshold -= weights["threshold"][part]
        l0 += (from_threshold > 0).sum().item()
        close += (from_threshold.abs() < 0.01).sum().item()
        W_low = W.bfloat16().float()
        margin = torch.outer(x_off, W.norm(dim=0)) + torch.outer(x_norm, (W - W_low).norm(dim=0))
        candidates += (from_threshold > -margin).sum().item()
    entries = len(x) * weights["W_enc"].shape[1]
    return {
        "l0": l0 / len(x),
        "within_0.01": close / len(x),
        "bf16_candidates": candidates / len(x),
        "pre_activation_rms": math.sqrt(squares / entries),
        "median_threshold": weights["threshold"].median().item(),
        "mean_norm": x_norm.mean().item(),
    }


# --- weights --------------------------------------------------------------------------------------------------------


def _tiles(d_model: int, d_sae: int, seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Start, decoder rows, encoder rows and biases, `_TILE` features at a time."""
    centre = mean(d_model, seed)
    for start in range(0, d_sae, _TILE):
        draw = _generator(seed, 1, start)
        count = min(_TILE, d_sae - start)
        own = _unit(draw.standard_normal((count, d_model), dtype=np.float32))
        families = _unit(draw.standard_normal((-(-count // _FAMILY), d_model), dtype=np.float32))
        W_dec = _unit(own + _SHARED * np.repeat(families, _FAMILY, axis=0)[:count])
        W_enc = _unit(W_dec + _ENCODER_NOISE * _unit(draw.standard_normal((count, d_model), dtype=np.float32)))
        yield start, W_dec, W_enc, -(W_enc @ centre)


def _rates(d_sae: int, l0: float, seed: int) -> np.ndarray:
    """How often each feature is planted: Zipf's law, its head flattened to at most half of all tokens."""
    ranks = _generator(seed, 3).permutation(d_sae)
    rates = 1.0 / (ranks + 1 + d_sae / 500)
    rates *= min(_RATE * l0, d_sae / 4) / rates.sum()
    return np.minimum(rates, 0.5)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


# --- the file -------------------------------------------------------------------------------------------------------


def _shapes(d_model: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    return {
        "W_enc": (d_model, d_sae),
        "W_dec": (d_sae, d_model),
        "b_enc": (d_sae,),
        "b_dec": (d_model,),
        "threshold": (d_sae,),
    }


def _mapped(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays in a safetensors file, laid out here when it does not exist; writing into them writes the new file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    is_new = not path.exists()
    if is_new:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return {
        name: np.memmap(
            path,
            np.float32,
            mode="r+" if is_new or path.suffix == ".new" else "c",
            offset=8 + len(text) + header[name]["data_offsets"][0],
            shape=shape,
        )
        for name, shape in shapes.items()
    }


def _remapped(path: Path, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shapes = {name: part.shape for name, part in parts.items()}
    for part in parts.values():
        part.flush()
    parts.clear()
    return _mapped(path, shapes)


def main() -> None:
    """Makes an SAE and says what it is like."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("d_model", type=int)
    parser.add_argument("d_sae", type=int)
    parser.add_argument("--l0", type=float, default=70.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=1024, help="to count on (default 1024)")
    args = parser.parse_args()
    folder = sae_folder(args.d_model, args.d_sae, l0=args.l0, seed=args.seed)
    weights = mapped(folder)
    x = activations(weights["W_dec"], args.tokens, l0=args.l0, seed=args.seed)
    print(json.dumps({name: round(value, 3) for name, value in near(weights, x).items()}, indent=1))


if __name__ == "__main__":
    main()
