"""Does the output score foretell what steering does? Steers labelled features of the bundled SAE, drawn by chance, and
prints how the score ranks them against what became of the text (Spearman's rank correlation).

    python tools/output_score.py --features 40

What became of a text is told by the model as it is, reading it anew: how strongly the steered feature itself fires on
what was written (mean activation as a share of its maximum), and the share of the tokens that its score is about. Both
less what they are in texts that the model writes by itself with the same dice.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

import gemscope as gs
from gemscope.atlas.units import units_of
from gemscope.edits.strength import Strength
from gemscope.features.logit_lens import promoted
from gemscope.reports.output_score import PROMPTS, output_score
from gemscope.reports.writing import Row, Writing, repetition

ATLAS = Path(gs.__file__).parent / "data" / "atlas"
LABELS = Path(__file__).parent / "default_labels.jsonl"
STARTS = ("I live in", "Yesterday we went")
"""What texts begin with: none of the prompts of the score."""
TOGETHER = 8
"""Features steered in one batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=40)
    parser.add_argument("--samples", type=int, default=4, help="texts of each feature and start")
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--norm", type=float, default=0.5, help="strength, as a share of the median norm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="write every feature's figures as JSON")
    args = parser.parse_args()
    model, sae, atlas = gs.load_model("smollm2", dtype="float32"), gs.load_sae("smollm2"), gs.Atlas(ATLAS)
    units = units_of(atlas, model, sae)
    labelled = [json.loads(line)["feature"] for line in LABELS.read_text("utf-8").splitlines()]
    features = random.Random(args.seed).sample(labelled, args.features)
    found = [_scored(model, sae, atlas, feature, units.norm(feature, args.norm)) for feature in features]
    _steered(model, sae, found, args)
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    _print(found)


def _scored(
    model: gs.LanguageModel, sae: gs.SAE, atlas: gs.Atlas, feature: int, strength: Strength
) -> dict[str, object]:
    page = atlas[feature]
    sets = {
        "promoted": promoted(model, sae, feature, k=20).tolist(),
        "examples": sorted({one.ids[one.peak] for one in page.strongest}),
    }
    out: dict[str, object] = {"feature": feature, "label": page.label, "raw": strength.raw, "max": page.max}
    one = output_score(model, sae, feature, strength=strength, **sets)
    assert one.examples is not None
    for name, effect in (("promoted", one), ("examples", one.examples)):
        out[name] = {"ids": sets[name], "score": effect.score, "change": effect.change}
    return out | {"writes": one.writes}


def _steered(
    model: gs.LanguageModel, sae: gs.SAE, found: Sequence[dict[str, object]], args: argparse.Namespace
) -> None:
    """Adds to each feature what became of its texts."""
    for first in range(0, len(found), TOGETHER):
        some = found[first : first + TOGETHER]
        edits = [[gs.Steer(sae, one["feature"], one["raw"])] for one in some]  # type: ignore[arg-type]
        for start in STARTS:
            writing = Writing(
                model,
                start,
                [(), *edits],
                n=args.samples,
                max_new_tokens=args.new_tokens,
                temperature=0.7,
                seed=args.seed,
                check=lambda: None,
            )
            for _ in writing:
                pass
            for index, one in enumerate(some, 1):
                before, after = (_told(sae, writing, writing.of(place), one) for place in (0, index))
                for name, value in after.items():
                    rise = value - (0.0 if name == "repetition" else before[name])
                    one[name] = one.get(name, 0.0) + rise / len(STARTS)  # type: ignore[operator]


def _told(sae: gs.SAE, writing: Writing, rows: Sequence[Row], one: dict[str, object]) -> dict[str, float]:
    feature: int = one["feature"]  # type: ignore[assignment]
    longest = max(len(row.ids) for row in rows)
    begun = writing.prompt[0].tolist()
    whole = torch.tensor([[*begun, *row.ids, *[begun[-1]] * (longest - len(row.ids))] for row in rows])
    active = sae.encode(writing.model.capture(whole, [sae.site])[sae.site], features=[feature]).to_dense()[..., feature]  # type: ignore[list-item,index]
    texts = [line[len(begun) : len(begun) + len(row.ids)] for line, row in zip(active, rows, strict=True)]
    every = [id_ for row in rows for id_ in row.ids]
    out = {
        "fires": torch.cat(texts).mean().item() / one["max"],  # type: ignore[operator]
        "repetition": sum(repetition(row.ids) for row in rows) / len(rows),
    }
    for name in ("promoted", "examples"):
        ids = set(one[name]["ids"])  # type: ignore[index]
        out[f"{name} written"] = sum(id_ in ids for id_ in every) / len(every)
    return out


def _print(found: Sequence[dict[str, object]]) -> None:
    outcomes = ("fires", "promoted written", "examples written")
    print(f"{len(found)} labelled features, prompts of the score: {', '.join(PROMPTS)}")
    print(f"{'Spearman with the rise of':<30}" + "".join(f"{name:>20}" for name in outcomes))
    for name in ("promoted", "examples"):
        for figure in ("score", "change"):
            line = [spearman([one[name][figure] for one in found], [one[told] for one in found]) for told in outcomes]  # type: ignore[index,misc]
            print(f"{name + ' tokens, ' + figure:<30}" + "".join(f"{value:>20.2f}" for value in line))
    groups = {"all": found} | {
        f"verdict: {name}": [one for one in found if one["writes"] is verdict]
        for name, verdict in (("writes", True), ("a little", None), ("hardly", False))
    }
    for name, some in groups.items():
        if some:
            mean = {told: sum(one[told] for one in some) / len(some) for told in (*outcomes, "repetition")}  # type: ignore[misc]
            told = "  ".join(f"{told} {value:+.3f}" for told, value in mean.items())
            print(f"{name + f' ({len(some)})':<30}{told}")


def spearman(some: Sequence[float], others: Sequence[float]) -> float:
    """Pearson's correlation of ranks, equal values sharing theirs."""
    one, other = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (some, others))
    return torch.corrcoef(torch.stack([one, other]))[0, 1].item()


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


if __name__ == "__main__":
    main()
