"""From which strength on does steered text break down? Steers features of the bundled SAE, drawn by chance, up and down at
shares of the median norm, and prints how much of the text is still text.

    python tools/breakdown.py --features 20

A text has broken down where it surprises the model as it is more than 95 % of ordinary text does (pieces as long, of the
bundled sample, after as many words before them), or where more than half of its runs of three tokens were there before.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

import gemscope as gs
from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.units import units_of
from gemscope.reports.output_score import PROMPTS
from gemscope.reports.writing import Writing, logprobs, perplexity, repetition

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5)
"""Of the median norm."""
ORDINARY = 200
"""Pieces of ordinary text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--samples", type=int, default=2, help="texts of each feature, share and prompt")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="write every text's figures as JSON")
    args = parser.parse_args()
    model, sae, atlas = gs.load_model("smollm2", dtype="float32"), gs.load_sae("smollm2"), gs.Atlas(BUNDLED)
    units = units_of(atlas, model, sae)
    odd = _ordinary(model, args.new_tokens)
    print(f"ordinary text: median perplexity {odd[len(odd) // 2]:.3g}, 95 % below {odd[int(0.95 * len(odd))]:.3g}")
    features = random.Random(args.seed).sample(atlas.scatter()[0].tolist(), args.features)
    found = [one for feature in features for one in _written(model, sae, units, feature, args)]
    if args.output:
        Path(args.output).write_text(json.dumps({"ordinary": odd, "texts": found}, indent=1) + "\n", "utf-8")
    _print(found, odd[int(0.95 * len(odd))])


def _ordinary(model: gs.LanguageModel, length: int) -> list[float]:
    """Perplexities of pieces of the sample, in order: each of one document, after 8 tokens of it."""
    found = []
    for document in gs.Corpus.sample().documents():
        ids = model.tokens(document.text[:2000]).ids[:, : 8 + length]
        if ids.shape[1] == 8 + length:
            found.append(perplexity(logprobs(model, ids[:, :8], [ids[0, 8:].tolist()], ())[0].tolist()))
        if len(found) == ORDINARY:
            break
    return sorted(found)


def _written(
    model: gs.LanguageModel, sae: gs.SAE, units: gs.Units, feature: int, args: argparse.Namespace
) -> list[dict[str, float]]:
    found = []
    shares = [0.0, *(sign * share for share in SHARES for sign in (1, -1))]
    for prompt in PROMPTS[:3]:
        writing = Writing(
            model,
            prompt,
            [[gs.Steer(sae, feature, units.norm(feature, share))] if share else [] for share in shares],
            n=args.samples,
            max_new_tokens=args.new_tokens,
            temperature=args.temperature,
            seed=args.seed,
            check=lambda: None,
        )
        for _ in writing:
            pass
        for place, share in enumerate(shares):
            for row, scores in zip(writing.of(place), writing.scored(place, ()), strict=True):
                figures = {"perplexity": perplexity(scores), "repetition": repetition(row.ids)}
                found.append({"feature": feature, "share": share, **figures, "text": row.text})
    print(f"feature {feature}: done", flush=True)
    return found


def _print(found: Sequence[dict[str, float]], much: float) -> None:
    print(f"{'x norm':>7} {'perplexity':>10} {'repeats':>8} {'broken':>7}   by feature: quarter, half, three quarters")
    for share in sorted({one["share"] for one in found}):
        some = [one for one in found if one["share"] == share]
        broken = [one["perplexity"] > much or one["repetition"] > 0.5 for one in some]
        by: dict[float, list[bool]] = {}
        for one, gone in zip(some, broken, strict=True):
            by.setdefault(one["feature"], []).append(gone)
        each = torch.tensor([sum(gone) / len(gone) for gone in by.values()])
        quarters = " ".join(f"{value:.0%}" for value in each.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())
        odd = torch.tensor([one["perplexity"] for one in some]).median().item()
        again = sum(one["repetition"] for one in some) / len(some)
        print(f"{share:7g} {odd:10.3g} {again:8.0%} {sum(broken) / len(broken):7.0%}   {quarters}")


if __name__ == "__main__":
    main()
