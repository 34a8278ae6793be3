"""What the words are worth that are told of what features promote (`features/clause.py`), for docs/atlas.md: how many of
features and of random directions they are told of, how far they come true in steering, how the agreement of the two
halves of the text goes with that; and ten random features as a table.

    gemscope effect --features 263 --file 15-res.safetensors --tokens 128
    python tools/effect_words.py 15-res.safetensors --features 250

Steering: a push of .11 of the site's median norm along the direction of a feature, on text that the effect was not
measured on, as in tools/effect_figures.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from copy import copy
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

import gemscope as gs
from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.describe.effects import writings
from gemscope.atlas.entry import AGREED, Written
from gemscope.features.logit_lens import promoted
from gemscope.pages.labels import clipped_label
from gemscope.text.printable import visible

STRENGTH = 0.11
LEAD, TOP, SEED = 8, 20, 20261128
BOUNDS = (0.0, AGREED, 0.85, 0.9, 0.93, 1.01)
"""Of the agreement of halves, between which figures are told."""
SHEET, ROWS = 25, 10
"""Features printed to be read, and in the table."""
_MARKDOWN = str.maketrans({"|": "\\|", "]": "&#93;", "<": "&lt;"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of an effect of the bundled model at the bundled SAE's site")
    parser.add_argument("--features", type=int, default=250, help="drawn among the living ones (default 250)")
    args = parser.parse_args()
    model, sae, effect = gs.load_model("smollm2", dtype="float32"), gs.load_sae("smollm2"), gs.Effect.load(args.file)
    told = list(writings(model, sae, effect, k=8))
    with gs.Atlas(BUNDLED) as atlas:
        living = torch.from_numpy(atlas.scatter()[0])
        chosen = living[torch.randperm(len(living), generator=torch.Generator().manual_seed(SEED))][: args.features]
        _sheet(model, sae, atlas.labels(chosen.tolist()), told, chosen.tolist())
    all_living = [told[feature] for feature in living.tolist()]
    random = writings(model, _random(sae), effect, k=8)
    for name, some in (("living features", all_living), ("random directions", list(random))):
        words = sum(bool(one and one.words) for one in some)
        print(f"{name}: words of {words:,} of {len(some):,} ({words / len(some):.1%})")
    _steered(model, sae, effect, told, chosen.tolist())


def _sheet(
    model: gs.LanguageModel, sae: gs.SAE, labels: dict[int, str], told: list[Written | None], chosen: list[int]
) -> None:
    """The first features of the draw, whatever they are."""
    for number, feature in enumerate(chosen[:SHEET]):
        one = told[feature]
        label = clipped_label(labels.get(feature, "no label"), 70)
        direct = _listed(model, promoted(model, sae, feature, k=6).tolist())
        measured = "—" if one is None or one.agreement < AGREED else _listed(model, one.promoted.tolist())
        row = f"| {feature} {label} | {direct} | {measured} | {one.words if one else ''} |"
        print(row if number < ROWS else f"  {row}")


def _listed(model: gs.LanguageModel, ids: list[int]) -> str:
    return ", ".join(visible(token).translate(_MARKDOWN).lstrip("·") for token in model.strings(ids))


def _random(sae: gs.SAE) -> gs.SAE:
    """The same SAE writing in random directions: what the rule makes of them is noise."""
    other = copy(sae)
    noise = torch.randn(2000, sae.d_out, generator=torch.Generator().manual_seed(SEED))
    vars(other)["_parameters"] = dict(sae._parameters) | {"W_dec": torch.nn.Parameter(noise, requires_grad=False)}
    return other


def _steered(
    model: gs.LanguageModel, sae: gs.SAE, effect: gs.Effect, told: list[Written | None], chosen: list[int]
) -> None:
    directions = torch.stack([sae.direction(feature).float() for feature in chosen])
    directions = directions / directions.norm(dim=-1, keepdim=True)
    predicted = effect.logits(model, directions)
    forms: dict[str, list[int]] = defaultdict(list)
    for id_, token in enumerate(model.strings(range(predicted.shape[1]))):
        forms[token.strip().casefold()].append(id_)
    ranks: list[int] = []
    by_agreement: list[tuple[float, float, int]] = []
    for feature, logits, moved in zip(chosen, predicted, _moved(model, sae, directions), strict=True):
        one = told[feature]
        if one is None:
            continue
        by_agreement.append((one.agreement, *_agreement(logits, moved)))
        places = moved.argsort(descending=True).argsort()
        ranks += [
            min(int(places[id_]) for id_ in forms[word.casefold()]) for word in filter(None, one.words.split(", "))
        ]
    shares = ", ".join(
        f"{sum(rank < most for rank in ranks) / len(ranks):.1%} of the first {most}" for most in (20, 100)
    )
    print(f"{len(ranks)} words told of {len(chosen)} features: by steering they are among {shares} of {len(moved):,}")
    for low, high in pairwise(BOUNDS):
        some = [(rank, shared) for agreement, rank, shared in by_agreement if low <= agreement < high]
        if some:
            rank, shared = median(one for one, _ in some), fmean(one for _, one in some)
            print(
                f"halves agree to {low}–{high}: {len(some)} features, Spearman {rank:.3f}, {shared:.1f} of {TOP} shared"
            )


def _moved(model: gs.LanguageModel, sae: gs.SAE, directions: Tensor) -> Iterator[Tensor]:
    """What a push along each direction does to the mean logits."""
    site = sae.site
    assert site is not None
    rows = next(model.rows(gs.Corpus.sample().skip(300), length=32, batch=4))
    acts = model.capture(rows, [site])[site]
    counted = acts.counted.clone()
    counted[:, :LEAD] = False
    norm = acts.rows.norm(dim=-1).median().item()
    clean = model.logits(rows)[counted]
    for direction in directions:
        with model.edited(gs.Steer.along(site, direction, STRENGTH * norm)):
            yield (model.logits(rows)[counted] - clean).mean(0)


def _agreement(one: Tensor, other: Tensor) -> tuple[float, int]:
    """Spearman's rank correlation, and how many of the `TOP` most raised tokens are the same."""
    ranks = torch.stack([part.argsort().argsort().double() for part in (one, other)])
    shared = set(one.topk(TOP).indices.tolist()) & set(other.topk(TOP).indices.tolist())
    return torch.corrcoef(ranks)[0, 1].item(), len(shared)


if __name__ == "__main__":
    main()
