"""How well the mean effect of one SAE's features on another's predicts what ablating them does, for docs/relatives.md:
pairs of features, the change of the later one's pre-activation per unit of the earlier one that is taken away, predicted
by encoder row · mean Jacobian · decoder row and measured by ablation on text that nothing was measured on before. Beside
it the direct path (the mean Jacobian left out), half of its text, and as the control the predictions of other pairs.

    python tools/relatives_figures.py smollm2 runs/16-res/sae
"""

from __future__ import annotations

import argparse
from statistics import fmean

import torch
from torch import Tensor

import gemscope as gs

SEED, LEAST = 20261128, 3
"""Of the draws; tokens of the text on which a feature fires that is ablated."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saes", nargs=2, help="the earlier one, and the later one")
    parser.add_argument("--pairs", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--rows", type=int, default=32, help="of 32 tokens that are read (default 32)")
    parser.add_argument("--skip", type=int, default=400, help="documents of the sample passed over (default 400)")
    parser.add_argument("--tokens", type=int, default=160, help="that the mean Jacobian is over (default 160)")
    parser.add_argument("--file", help="where the mean Jacobian is kept")
    args = parser.parse_args()
    model = gs.load_model("smollm2", dtype="float32")
    one, other = (gs.load_sae(address) for address in args.saes)
    text = gs.Corpus.sample()
    effect = gs.effect(model, one.site_out, text, until=other.site, tokens=args.tokens, to=args.file)
    print(effect)
    rows = next(model.rows(text.skip(args.skip), length=32, batch=args.rows))
    captured = model.capture(rows, [one.site, other.site])
    counted = captured[one.site].counted
    fired = one.encode(captured[one.site]).to_dense()[counted]
    there = other.encode(captured[other.site]).to_dense()[counted]
    dice = torch.Generator().manual_seed(SEED)
    living = torch.nonzero((fired > 0).sum(0) >= LEAST)[:, 0]
    living = living[torch.randperm(len(living), generator=dice)[: args.pairs]]
    readers = torch.nonzero((there > 0).sum(0) >= LEAST)[:, 0]
    halves = [*effect.halves()]
    said = {
        "mean effect": _read(one, other, effect.jacobian(), living),
        "from half the text": _read(one, other, halves[0], living),
        "this position alone": _read(one, other, effect.jacobian("this"), living),
        "direct path": one.W_dec[living].float() @ other.W_enc.float(),
    }
    whole = said["mean effect"][:, readers] / there[:, readers].sum(0) * (there[:, readers] > 0).sum(0)
    chosen = {
        "raised most": readers[whole.argmax(1)],
        "lowered most": readers[whole.argmin(1)],
        "drawn by chance": readers[torch.randint(len(readers), (len(living),), generator=dice)],
    }
    measured = _ablated(model, (one, other), living, rows, clean=captured[other.site].values[counted], fired=fired)
    print(
        f"{len(living)} features, {int(counted.sum())} tokens, median firings {(fired[:, living] > 0).sum(0).median()}"
    )
    print("pairs | mean change | same sign |", " | ".join([*said, "control"]))
    at = torch.arange(len(living))
    for name, later in chosen.items():
        truth = measured[at, later]
        predictions = {key: value[at, later] for key, value in said.items()}
        predictions["control"] = predictions["mean effect"].roll(1)
        same = fmean((predictions["mean effect"].sign() == truth.sign()).float().tolist())
        ranks = " | ".join(f"{_ranks(value, truth):.3f}" for value in predictions.values())
        print(f"{name} | {truth.mean():+.3f} | {same:.2f} | {ranks}")
    within = {
        key: torch.tensor([_ranks(value[row, readers], measured[row, readers]) for row in range(len(living))]).median()
        for key, value in said.items()
    }
    within["control"] = torch.tensor(
        [_ranks(said["mean effect"][row - 1, readers], measured[row, readers]) for row in range(len(living))]
    ).median()
    print(f"over all {len(readers)} later features, median of the {len(living)}:", end=" ")
    print(" | ".join(f"{key} {value:.3f}" for key, value in within.items()))


def _read(one: gs.SAE, other: gs.SAE, J: Tensor, features: Tensor) -> Tensor:
    """[n, G] what a unit of each feature adds to each pre-activation, over the text that follows."""
    return one.W_dec[features].float() @ J.T @ other.W_enc.float()


@torch.no_grad()
def _ablated(
    model: gs.LanguageModel,
    saes: tuple[gs.SAE, gs.SAE],
    features: Tensor,
    rows: gs.Tokens,
    *,
    clean: Tensor,
    fired: Tensor,
) -> Tensor:
    """[n, G] how far the pre-activations fall, over all tokens, per unit of a feature that is taken away."""
    one, other = saes
    found = torch.zeros(len(features), other.d_sae)
    counted = model.capture(rows, [other.site])[other.site].counted
    for row, feature in enumerate(features.tolist()):
        with model.edited(gs.Ablate(one, feature)):
            after = model.capture(rows, [other.site], every_token=True)[other.site].values[counted]
        change = (clean - after).sum(0) @ other.W_enc.float()
        found[row] = change / fired[:, feature].sum()
    return found


def _ranks(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return torch.corrcoef(ranks)[0, 1].item()


if __name__ == "__main__":
    main()
