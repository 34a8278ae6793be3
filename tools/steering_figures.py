"""Does steering with a feature bring what its examples are about into the text? The figures of docs/edits.md.

For each of eight features, chosen before anything was generated (docs/edits.md says how): the share of continuations with one of
the concept's words, unsteered, steered, steered with features drawn at random and with noise, all of one length at the
site, on the same prompts with the same dice. The words are those that the feature fires on in the atlas's examples.

    .venv/bin/python tools/steering_figures.py              # ten minutes; writes docs/steering.json and .svg
    .venv/bin/python tools/steering_figures.py --words      # what counts as each concept, generating nothing
    .venv/bin/python tools/steering_figures.py --page       # docs/edits.md anew from docs/steering.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gemscope as gs
from gemscope.activations.editing import Edit
from gemscope.atlas.units import units_of
from gemscope.edits.controls import noise, random_feature

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULT, PICTURE, PAGE = DOCS / "steering.json", DOCS / "steering.svg", DOCS / "edits.md"
WORK = DOCS.parent / "runs" / "steering"
BUNDLED = Path(gs.__file__).parent / "data" / "atlas"

CONCEPTS = (8029, 263, 2341, 2852, 3098, 4443, 3252, 4540)
SWEPT, SHARES = 8029, (0.1, 0.2, 0.3, 0.5, 1.0)
SHARE = 0.5
"""Length of what is added, in median norms of the site: half of it, as others found best on other models. One strength
for all features, and none of them tuned."""
PROMPTS = (
    "I think that",
    "The first thing I saw was",
    "Let me tell you about",
    "My friend told me that",
    "It was a long story, and",
    "When I woke up,",
    "On the table there was",
    "Nobody knows why",
)
EACH = 8
"""Continuations of each prompt: 64 in all."""
NEW, TEMPERATURE, SEED = 32, 0.7, 16
FUNCTION_WORDS = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "from",
        "that",
        "this",
        "these",
        "those",
        "not",
        "but",
        "was",
        "were",
        "are",
        "been",
        "being",
        "have",
        "has",
        "had",
        "his",
        "her",
        "its",
        "their",
        "your",
        "our",
        "you",
        "they",
        "she",
        "him",
        "them",
        "who",
        "which",
        "what",
        "when",
        "where",
        "how",
        "all",
        "any",
        "both",
        "each",
        "more",
        "most",
        "other",
        "some",
        "such",
        "than",
        "too",
        "very",
        "can",
        "will",
        "just",
        "into",
        "over",
        "under",
        "again",
        "then",
        "once",
        "here",
        "there",
        "out",
        "off",
        "down",
        "about",
        "after",
        "before",
        "between",
        "through",
        "during",
        "while",
        "would",
        "could",
        "should",
        "may",
        "might",
        "must",
        "shall",
        "one",
        "two",
        "also",
        "upon",
        "only",
        "own",
        "same",
    ]
)


def main() -> None:
    """Generates and writes, unless only the words or the page are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", action="store_true", help="print what counts as each concept, and end")
    parser.add_argument(
        "--page", action="store_true", help="write the table into docs/edits.md from docs/steering.json"
    )
    args = parser.parse_args()
    if args.page:
        written(PAGE, with_figures(PAGE.read_text(), json.loads(RESULT.read_text())))
        return
    atlas = gs.Atlas(BUNDLED)
    concepts = {feature: words(atlas, feature) for feature in CONCEPTS}
    if args.words:
        for feature, found in concepts.items():
            print(f"{feature} {atlas[feature].label}\n    {' '.join(found)}")
        return
    result = measured(atlas, concepts)
    written(RESULT, json.dumps(result, indent=1) + "\n")
    written(PICTURE, picture(result))
    if PAGE.exists():
        written(PAGE, with_figures(PAGE.read_text(), result))
    print(table(result), sweep_table(result), sep="\n\n")


# --- what counts as the concept -------------------------------------------------------------------------------------


def words(atlas: gs.Atlas, feature: int) -> list[str]:
    """Words of the feature's own examples that hold a token on which it is at least half as active as it ever was."""
    page = atlas[feature]
    found = set()
    for example in page.examples:
        text, spans = "", []
        for token, value in zip(example.tokens, example.values, strict=True):
            spans.append((len(text), len(text) + len(token), value))
            text += token
        for word in re.finditer(r"[A-Za-z]+", text):
            strong = any(
                value >= page.max / 2 for start, end, value in spans if start < word.end() and end > word.start()
            )
            if strong and len(word[0]) > 2 and word[0].lower() not in FUNCTION_WORDS:
                found.add(word[0].lower())
    return sorted(found)


def detector(concept: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, whole, a plural s apart."""
    return re.compile(rf"\b(?:{'|'.join(concept)})s?\b", re.IGNORECASE)


# --- generating -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Continuations of all prompts under one condition."""

    texts: list[str]
    perplexities: list[float]
    """Each under the model without any edit."""
    repetitions: list[float]

    def figures(self, finds: re.Pattern[str]) -> dict[str, Any]:
        """Share with the concept and its 95 % interval, and what the text has come to."""
        hits = sum(bool(finds.search(text)) for text in self.texts)
        low, high = wilson(hits, len(self.texts))
        return {
            "n": len(self.texts),
            "hits": hits,
            "share_with": round(hits / len(self.texts), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "perplexity": round(statistics.median(self.perplexities), 2),
            "repetition": round(statistics.fmean(self.repetitions), 4),
        }


class Bench:
    """The bundled model, and every condition by name. What was generated is kept in a folder, so that a run that was
    stopped goes on.
    """

    def __init__(self, atlas: gs.Atlas, folder: Path = WORK) -> None:
        self.model, self.sae = gs.load_model(), gs.load_sae("smollm2")
        self.units = units_of(atlas, self.model, self.sae)
        self.others = [
            random_feature(self.sae, feature, self.units, seed=number) for number, feature in enumerate(CONCEPTS)
        ]
        self.folder = folder / self.sae.digest[:8]  # texts of other weights are others
        noises = [noise(self.sae, feature, seed=number) for number, feature in enumerate(CONCEPTS)]
        self.conditions: dict[str, tuple[list[Edit], int]] = {
            "unsteered": ([], SEED),
            **{f"steered-{feature}": ([self.steer(feature, SHARE)], SEED) for feature in CONCEPTS},
            "random": ([self.steer(other, SHARE) for other in self.others], SEED),
            "noise": ([self.push(vector, SHARE) for vector in noises], SEED),
            **{f"swept-{share:g}": ([self.steer(SWEPT, share)] if share else [], SEED + 1) for share in (0.0, *SHARES)},
        }

    def steer(self, feature: int, share: float) -> Edit:
        return gs.Steer(self.sae, feature, self.units.norm(feature, share))

    def push(self, vector: Tensor, share: float) -> Edit:
        assert self.sae.site is not None
        assert self.units.median_norm is not None
        return gs.Steer.along(self.sae.site, vector, share * self.units.median_norm / vector.norm().item())

    def sample(self, name: str) -> Sample:
        """Read if it is there, generated if it is not."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            print(f"generating: {name}", file=sys.stderr, flush=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            written(path, json.dumps(asdict(self._generated(*self.conditions[name]))))
        return Sample(**json.loads(path.read_text()))

    def _generated(self, edits: Sequence[Edit], seed: int) -> Sample:
        """One edit for all rows, or one for the rows of each prompt."""
        model, every = self.model, range(len(PROMPTS) * EACH)
        tokens = model.tokens([prompt for prompt in PROMPTS for _ in range(EACH)], side="left")
        with ExitStack() as stack:
            for number, edit in enumerate(edits):
                rows = every if len(edits) == 1 else every[number * EACH : (number + 1) * EACH]
                stack.enter_context(model.edited(edit, rows=rows))
            steps = list(model.stream(tokens, max_new_tokens=NEW, temperature=TEMPERATURE, seed=seed))
        ids = torch.stack([step.ids for step in steps], 1)
        over = torch.stack([step.ended for step in steps], 1).sum(-1)
        kept = [row[: len(row) - max(0, int(after) - 1)] for row, after in zip(ids, over, strict=True)]
        return Sample(
            [str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in kept],
            list(perplexities(model, tokens.ids, tokens.real, kept)),
            [repetition(row.tolist()) for row in kept],
        )


def measured(atlas: gs.Atlas, concepts: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Every figure, with what it was taken under."""
    bench = Bench(atlas)
    rows = []
    for feature, concept in concepts.items():
        finds, name = detector(concept), f"steered-{feature}"
        names = {"unsteered": "unsteered", "steered": name, "random": "random", "noise": "noise"}
        rows.append(
            {
                "feature": feature,
                "label": atlas[feature].label,
                "words": list(concept),
                "strength": str(bench.units.norm(feature, SHARE)),
                "found": {kind: bench.sample(one).figures(finds) for kind, one in names.items()},
                "texts": bench.sample(name).texts,
            }
        )
    finds = detector(concepts[SWEPT])
    swept = [{"share": share} | bench.sample(f"swept-{share:g}").figures(finds) for share in (0.0, *SHARES)]
    return {
        "model": bench.model.name,
        "sae": bench.sae.info.name,
        "site": str(bench.sae.site),
        "share": SHARE,
        "median_norm": bench.units.median_norm,
        "prompts": PROMPTS,
        "each": EACH,
        "tokens": NEW,
        "temperature": TEMPERATURE,
        "seed": SEED,
        "random_features": bench.others,
        "rows": rows,
        "unsteered": bench.sample("unsteered").texts,
        "sweep": {"feature": SWEPT, "seed": SEED + 1, "rows": swept},
    }


def perplexities(model: gs.LanguageModel, ids: Tensor, real: Tensor, written: Sequence[Tensor]) -> Iterator[float]:
    """Of each continuation under the model without any edit."""
    for prompt, there, row in zip(ids, real, written, strict=True):
        whole = torch.cat([prompt[there], row])
        logprobs = model.logits(whole)[0, :-1].float().log_softmax(-1).cpu()
        said = logprobs.gather(-1, whole[1:, None])[-len(row) :, 0]
        yield math.exp(-said.mean().item())


def repetition(ids: Sequence[int]) -> float:
    """Share of runs of three tokens that occurred before in the same text."""
    runs = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


# --- showing --------------------------------------------------------------------------------------------------------

KINDS = ("unsteered", "steered", "random", "noise")


def with_figures(page: str, result: Mapping[str, Any]) -> str:
    """The page with its tables made anew, between their marks."""
    made_by_name = {
        "steering": table(result),
        "findings": findings(result),
        "sweep": sweep_table(result),
        "texts": samples(result),
    }
    for name, made in made_by_name.items():
        between = re.compile(f"(<!-- {name}: .*? -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        page = between.sub(lambda found, made=made: found[1] + made + found[2], page)
    return page


def table(result: Mapping[str, Any]) -> str:
    """One line a feature: shares with the concept, and what it costs."""
    lines = [
        "| feature | its label | unsteered | **steered** | random features | noise | perplexity | repetition |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        found = row["found"]
        shares = [f"{one['share_with']:.0%} ({one['low']:.0%} to {one['high']:.0%})" for one in map(found.get, KINDS)]
        shares[1] = f"**{shares[1]}**"
        costs = [
            f"{found['unsteered'][key]:{digits}} → {found['steered'][key]:{digits}} ({found['random'][key]:{digits}})"
            for key, digits in (("perplexity", ".0f"), ("repetition", ".2f"))
        ]
        lines.append(f"| {row['feature']} | {row['label']} | {' | '.join(shares + costs)} |")
    return "\n".join(lines)


def findings(result: Mapping[str, Any]) -> str:
    """How many features do it, and which do not: by whether their interval lies above those of all three others."""
    works, fails = [], []
    for row in result["rows"]:
        found = row["found"]
        above = all(found["steered"]["low"] > found[kind]["high"] for kind in KINDS if kind != "steered")
        (works if above else fails).append(row)
    others = [kind for kind in KINDS if kind != "steered"]
    more = [row for row in fails if all(row["found"]["steered"]["hits"] > row["found"][k]["hits"] for k in others)]
    costs = [statistics.median(row["found"][kind]["perplexity"] for row in result["rows"]) for kind in KINDS]
    said = (
        f"For {len(works)} of {len(result['rows'])} features the interval of the steered text lies above those of all "
        f"three others. "
    )
    if fails:
        said += f"Not so for {', '.join(str(row['feature']) for row in fails)}"
        said += f" ({len(more)} of them still more often than all three, within the scatter). " if more else ". "
    return said + (
        f"Perplexity under the unedited model goes from {costs[0]:.0f} to {costs[1]:.0f} (median of the features), as it "
        f"does with random features ({costs[2]:.0f}) and noise ({costs[3]:.0f}): the push costs fluency whatever its "
        "direction, and what it says depends on the direction."
    )


def sweep_table(result: Mapping[str, Any]) -> str:
    """One line a strength."""
    lines = ["| × median norm | with the concept | perplexity | repetition |", "| ---: | ---: | ---: | ---: |"]
    for row in result["sweep"]["rows"]:
        lines.append(
            f"| {row['share']:g} | {row['share_with']:.0%} ({row['low']:.0%} to {row['high']:.0%}) "
            f"| {row['perplexity']:.0f} | {row['repetition']:.2f} |"
        )
    return "\n".join(lines)


def samples(result: Mapping[str, Any]) -> str:
    """The first continuation of the first prompt, steered with each feature: taken as it comes."""
    lines = []
    for row in result["rows"]:
        text = " ".join(row["texts"][0].split())
        lines.append(f"- {row['feature']}, {row['label']}: {result['prompts'][0]} … `{text.replace('`', chr(39))}`")
    return "\n".join(lines)


def picture(result: Mapping[str, Any]) -> str:
    """Shares with their intervals, a row a feature."""
    left, width, step, top = 250, 470, 34, 46
    height = top + step * len(result["rows"]) + 40
    colours = {"unsteered": "#8a8f98", "steered": "#0a7d4f", "random": "#b0651f", "noise": "#6a5acd"}

    def x(share: float) -> float:
        return left + share * width

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Share of continuations with the concept, with 95 % intervals</title>",
        f'<rect width="100%" height="{height}" fill="#ffffff"/>',
    ]
    for number, kind in enumerate(KINDS):
        at = left + number * 112
        parts.append(f'<circle cx="{at}" cy="18" r="5" fill="{colours[kind]}"/>')
        parts.append(f'<text x="{at + 10}" y="22" fill="#222">{kind}</text>')
    for tick in range(0, 101, 25):
        parts.append(
            f'<line x1="{x(tick / 100)}" y1="{top - 8}" x2="{x(tick / 100)}" y2="{height - 32}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{x(tick / 100)}" y="{height - 14}" text-anchor="middle" fill="#444">{tick} %</text>')
    for index, row in enumerate(result["rows"]):
        middle = top + index * step + step / 2 - 6
        label = row["label"].removesuffix(" (when strong)")
        label = label if len(label) < 36 else f"{label[:34]}…"
        parts.append(f'<text x="{left - 12}" y="{middle + 4}" text-anchor="end" fill="#222">{escape(label)}</text>')
        for place, kind in enumerate(KINDS):
            one, y = row["found"][kind], middle - 9 + 6 * place
            parts.append(
                f'<line x1="{x(one["low"]):.1f}" y1="{y}" x2="{x(one["high"]):.1f}" y2="{y}" '
                f'stroke="{colours[kind]}" stroke-width="2" opacity="0.5"/>'
                f'<circle cx="{x(one["share_with"]):.1f}" cy="{y}" r="3.5" fill="{colours[kind]}"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def written(path: Path, text: str) -> None:
    """Beside its place, then moved there."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    os.replace(aside, path)


if __name__ == "__main__":
    main()
