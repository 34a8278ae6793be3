"""How well an effect predicts steering, for the tables of docs/effect.md: rank correlation over the vocabulary and shared
top tokens, of what an `Effect` says and of what a small push along a direction does to text that it was not measured on.
Beside it half of its text, its parts, the direct path, and another direction's effect as the control. At the bundled SAE's
site directions are those of random living features, elsewhere (and everywhere with `--random`) random ones. One line of a table for each file and strength.

    gemscope effect --features 263 --file 15-res.safetensors --tokens 128 --dtype float32
    python tools/effect_figures.py 15-res.safetensors --directions 30
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

import gemscope as gs
from gemscope.activations import products
from gemscope.activations.direct import DirectPath
from gemscope.atlas.bundled import BUNDLED

STRENGTHS = (0.03, 0.11, 0.34)
"""Of a push, in median norms of the site."""
LEAD, TOP, SEED = 8, 20, 20261128
"""Tokens of each row that are left out; tokens compared; of the draw of features."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="of effects of the bundled model")
    parser.add_argument("--directions", type=int, default=30, help="features, or random ones (default 30)")
    parser.add_argument("--random", action="store_true", help="random directions at the bundled SAE's site too")
    parser.add_argument("--rows", type=int, default=4, help="of text that is steered (default 4)")
    args = parser.parse_args()
    model, sae = gs.load_model("smollm2", dtype="float32"), gs.load_sae("smollm2")
    rows = next(model.rows(gs.Corpus.sample().skip(300), length=32, batch=args.rows))
    for file in args.files:
        _figures(model, sae, gs.Effect.load(file), rows, args)


def _figures(
    model: gs.LanguageModel, sae: gs.SAE, effect: gs.Effect, rows: gs.Tokens, args: argparse.Namespace
) -> None:
    n = args.directions
    site = gs.Site.parse(effect.of.site)
    acts = model.capture(rows, [site])[site]
    counted = acts.counted.clone()
    counted[:, :LEAD] = False
    norm = acts.rows.norm(dim=-1).median().item()
    clean = model.logits(rows)[counted]
    dice = torch.Generator().manual_seed(SEED)
    directions = torch.randn(n, model.width(site), generator=dice)
    if site == sae.site and not args.random:
        with gs.Atlas(BUNDLED) as atlas:
            living = torch.from_numpy(atlas.scatter()[0])
        chosen = living[torch.randperm(len(living), generator=dice.manual_seed(SEED))[:n]]
        directions = torch.stack([sae.direction(feature).float() for feature in chosen.tolist()])
    directions = directions / directions.norm(dim=-1, keepdim=True)
    predicted = _predictions(model, site, effect, directions)
    print(effect, f"median norm {norm:.0f}", " | ".join(predicted), sep=chr(10))
    for strength in STRENGTHS:
        told: dict[str, list[tuple[float, int]]] = {name: [] for name in predicted}
        for index, direction in enumerate(directions):
            with model.edited(gs.Steer.along(site, direction, strength * norm)), products.quick():
                moved = (model.logits(rows)[counted] - clean).mean(0)
            for name, logits in predicted.items():
                told[name].append(_agreement(logits[index], moved[: logits.shape[1]]))
        figures = " | ".join(
            f"{median(rank for rank, _ in both):.3f}, {fmean(shared for _, shared in both):.1f}"
            for both in told.values()
        )
        print(f"| {site} | {strength:.2f} | {figures} |", flush=True)


def _predictions(model: gs.LanguageModel, site: gs.Site, effect: gs.Effect, directions: Tensor) -> Mapping[str, Tensor]:
    """By name, [directions, vocabulary]."""
    half = gs.Effect(of=effect.of, this=effect.this[[0, 0]], later=effect.later[[0, 0]])
    every = effect.logits(model, directions)
    path = DirectPath(model, site)
    with path.unembedding() as W_U:
        direct = path.carried(directions) @ W_U.float().T
    return {
        "all": every,
        "half the text": half.logits(model, directions),
        "this": effect.logits(model, directions, part="this"),
        "later": effect.logits(model, directions, part="later"),
        "direct": direct - direct.mean(-1, keepdim=True),
        "another direction": every.roll(1, 0),
    }


def _agreement(one: Tensor, other: Tensor) -> tuple[float, int]:
    """Spearman's rank correlation, and how many of the `TOP` most raised tokens are the same."""
    ranks = torch.stack([part.argsort().argsort().double() for part in (one, other)])
    shared = set(one.topk(TOP).indices.tolist()) & set(other.topk(TOP).indices.tolist())
    return torch.corrcoef(ranks)[0, 1].item(), len(shared)


if __name__ == "__main__":
    main()
