"""Makes the SAE that ships as `smollm2`: mix of texts, harvest, training, score, weights and card. One command:

    make default-sae          # runs: python tools/default_sae.py, with the two corpora in place

    python tools/default_sae.py --kept 0.4 --work runs/broad --no-ship      # on other kinds of prose, too

`--kept` trains on so much of those documents, and on other kinds of prose as well (corpora/broad, corpora/own-subjects). What is
held out, and so what the card's figures are of, stays the same documents. `--no-ship` leaves the shipped weights
and their card as they are, and prints the figures of the new ones beside theirs.

Steps whose result is there already are passed over, so a run that was cut off goes on where it stopped. Needs about
10 GB of disk and an hour and a half on two cores. `--card` measures the weights that are shipped and writes their figures into the
card again, some ten minutes; what it says of data and training stays. `--unlike` measures them on the text that none of
their sources resembles alone, three minutes; all else of the card stays.
"""

import argparse
import gzip
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

import gemscope as gs
from gemscope.cli.bars import bars
from gemscope.progress import Progress
from gemscope.reports.score import Score
from gemscope.reports.sweep import compare
from gemscope.training.config import TrainConfig

SITE = "15.res"
OUT = Path("src/gemscope/data/smollm2-15-res")
PER_SOURCE = 2_000_000
"""Characters of each source at most: no single manual or dictionary shall dominate."""
PER_SCRIPTURE = 400_000
"""Of the bible and each commentary on it: of all kinds that were tried beside the sources' own text, it helped least."""
PER_DOCUMENT = 24_000
PER_UNLIKE = 2_000
"""Characters of each document unlike the sources: few of many, as one subject goes on for long."""
OWN = ("english-permissive", "own-words")
BROAD = ("broad", "own-subjects")
SCRIPTURE = ("bible-web", "henry-commentary", "spurgeon-psalms")
UNLIKE = {"anarchist-faq": "political prose", "news-2001": "news", "mail-2002": "letters"}
HELD_OUT = 0.025
SCORED = {"tokens": 120_000, "loss_tokens": 20_000}
ELSEWHERE = {"tokens": 50_000, "loss_tokens": 20_000}
TRIED = {"tokens": 20_000, "loss_tokens": 10_000}
"""Mistakes show on fewer tokens."""


def mixed(corpus: gs.Corpus, to: Path, seed: int, per_document: int = PER_DOCUMENT) -> None:
    """Its documents in one shuffled file, long ones and large sources cut."""
    dice = random.Random(seed)
    documents = [asdict(document) for document in corpus]
    dice.shuffle(documents)
    held: Counter[str] = Counter()
    aside = to.with_name(f".{to.name}")
    with aside.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
        for document in documents:
            text = document["text"]
            if len(text) > per_document:
                start = text.find("\n", dice.randrange(len(text) - per_document)) + 1
                text = text[start : start + per_document]
            most = PER_SCRIPTURE if document["source"] in SCRIPTURE else PER_SOURCE
            if held[document["source"]] + len(text) > most:
                continue
            held[document["source"]] += len(text)
            packed.write((json.dumps({**document, "text": text}) + "\n").encode())
    os.replace(aside, to)
    print(f"{to}: {sum(held.values()) / 1e6:.1f} MB: {dict(held)}", file=sys.stderr)


def broadened(training: gs.Corpus, args: argparse.Namespace, seed: int) -> gs.Corpus:
    """So much of the training text as is to be kept, and the other kinds of prose, in one shuffled file."""
    added, both = args.work / "mix-broad.jsonl.gz", args.work / "training.jsonl.gz"
    if not both.exists():
        mixed(gs.Corpus.read([args.corpora / f"{name}.jsonl.gz" for name in BROAD]), added, seed)
        dice = random.Random(seed)
        kept = [document for document in training if dice.random() < args.kept]
        documents = [asdict(document) for document in [*kept, *gs.Corpus.read(added)]]
        dice.shuffle(documents)
        aside = both.with_name(f".{both.name}")
        with gzip.open(aside, "wt") as packed:
            packed.writelines(json.dumps(document) + "\n" for document in documents)
        os.replace(aside, both)
    return gs.Corpus.read(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/smollm2-15-res.toml"))
    parser.add_argument("--corpora", type=Path, default=Path("corpora"))
    parser.add_argument("--unlike-text", type=Path, default=Path("unlike/unlike.jsonl.gz"))
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2-15-res"))
    parser.add_argument("--tokens", type=int, default=6_170_000)
    parser.add_argument("--kept", type=float, help="train on this share of the documents, and on other kinds of prose")
    parser.add_argument("--no-ship", dest="ship", action="store_false", help="leave the shipped weights and card alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--card", action="store_true", help="measure the shipped weights anew and write their card")
    parser.add_argument("--unlike", action="store_true", help="measure them on unlike text alone, and write that anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.read(args.recipe)
    unlike = {}
    for name in UNLIKE:
        cut = args.work / f"unlike-{name}.jsonl.gz"
        if not cut.exists():
            mixed(gs.Corpus.read(args.unlike_text).only(name), cut, config.seed, PER_UNLIKE)
        unlike[name] = gs.Corpus.read(cut)
    readme = OUT / "README.md"
    if args.unlike:
        with bars() as progress:
            told = elsewhere(gs.load_model("smollm2"), unlike, progress)
        text = readme.read_text()
        before, after = text[: text.index(BESIDE if BESIDE in text else MISTAKES)], text[text.index(MISTAKES) :]
        readme.write_text(f"{before}{told}\n{after}")
        return
    mix = args.work / "mix.jsonl.gz"
    if not mix.exists():
        mixed(gs.Corpus.read([args.corpora / f"{name}.jsonl.gz" for name in OWN]), mix, config.seed)
    training, held_out = gs.Corpus.read(mix).split(HELD_OUT)
    if args.kept is not None:
        training = broadened(training, args, config.seed)
    model = gs.load_model("smollm2")
    with bars() as progress:
        if not args.card:
            for corpus, folder, tokens in ((held_out, "held-out", 200_000), (training, "train", args.tokens)):
                if not (args.work / folder).exists():
                    gs.harvest(model, corpus, [SITE], to=args.work / folder, tokens=tokens, progress=progress)
            harvests = {"held_out": args.work / "held-out", "progress": progress}
            gs.train(args.work / "train", config, to=args.work / "run", **harvests)
            if not args.ship:
                compared(model, args.work / "run" / "sae", {"held out": held_out, **unlike}, progress)
                return
            ship(args.work / "run" / "sae")
        figures = measured(model, held_out, unlike, progress)
    if args.card:
        origin = readme.read_text()[readme.read_text().index(ORIGIN) :]
    else:
        last = json.loads((args.work / "run" / "log.jsonl").read_text().splitlines()[-1])
        harvest = gs.Store(args.work / "train")
        origin = provenance(gs.load_sae("smollm2"), harvest, config, sources(training), last["silent"])
    readme.write_text(f"{figures}\n{origin}")


def measured(model: gs.LanguageModel, held_out: gs.Corpus, unlike: Mapping[str, gs.Corpus], progress: Progress) -> str:
    """The card's first half: the figures of the shipped weights, and what they are when they are used wrongly."""
    sae = gs.load_sae("smollm2")
    score = gs.score(model, sae, held_out, **SCORED, progress=progress)
    print(score)
    flipped = gs.load_sae("smollm2")
    flipped.W_dec.neg_()
    wrong = [sae, *(gs.load_sae("smollm2", site=site) for site in ("14.res", "16.res", "15.mid")), flipped]
    names = ["as it should be", "read at 14.res", "read at 16.res", "read at 15.mid", "decoder's sign flipped"]
    compared = compare(model, wrong, held_out, **TRIED, progress=progress).scores
    counted = gs.score(model, sae, held_out, **TRIED, every_token=True, progress=progress)
    mistakes = [*zip(names, compared, strict=True), ("BOS, first positions and sinks counted", counted)]
    for name, one in mistakes:
        print(name, one, sep="\n")
    return card(sae, model, score, elsewhere(model, unlike, progress), mistakes)


def elsewhere(model: gs.LanguageModel, unlike: Mapping[str, gs.Corpus], progress: Progress) -> str:
    """The figures on texts that none of the sources resembles, as the card has them."""
    sae = gs.load_sae("smollm2")
    scores = [gs.score(model, sae, text, **ELSEWHERE, progress=progress) for text in unlike.values()]
    for name, score in zip(unlike, scores, strict=True):
        print(name, score, sep="\n")

    def row(label: str, told: Callable[[Score], str]) -> str:
        return f"| {label} | {' | '.join(map(told, scores))} |"

    return f"""{BESIDE}

Most text is not what an SAE learned from. Of texts that none of the sources below resembles (`make unlike`: political prose,
broadcast news, letters to mailing lists; {PER_UNLIKE:,} characters of each document at most) the same figures are:

| | {" | ".join(UNLIKE[name] for name in unlike)} |
| --- | {" | ".join("---" for _ in unlike)} |
{row("L0 per token (standard deviation, 95 % of tokens)", lambda one: f"{one.l0:.1f} ({one.l0_std:.0f}, ≤ {one.l0_p95})")}
{row("FVU", lambda one: f"{one.fvu:.4f}")}
{row("mean cosine", lambda one: f"{one.cosine:.4f}")}
{row("dead (never fired)", lambda one: f"{one.dead:.2%}")}
{row("delta loss, spliced", lambda one: f"{one.delta_loss:+.4f} nats ({one.loss:.4f} → {one.spliced_loss:.4f})")}
{row("KL(clean ‖ spliced)", lambda one: f"{one.kl:.4f} nats")}
{row("recovered from the site's mean, of the loss and of the KL", lambda one: f"{one.loss_recovered_mean:.2%}, {one.kl_score_mean:.2%}")}
{row("tokens (for the losses; masked)", lambda one: f"{one.tokens:,} ({one.loss_tokens:,}; {one.masked:,})")}
"""


def compared(model: gs.LanguageModel, new: Path, texts: Mapping[str, gs.Corpus], progress: Progress) -> None:
    """Prints what the new SAE and the shipped one are worth on each text."""
    saes = [gs.load_sae("smollm2"), gs.load_sae(new)]
    for name, text in texts.items():
        print(name, *compare(model, saes, text, **ELSEWHERE, progress=progress).scores, sep="\n")


def sources(text: gs.Corpus) -> Counter[str]:
    """Characters of each source in the text."""
    held: Counter[str] = Counter()
    for document in text:
        held[document.source] += len(document.text)
    return held


def card(sae: gs.SAE, model: gs.LanguageModel, score: Score, beside: str, mistakes: list[tuple[str, Score]]) -> str:
    """The figures, each of them measured."""
    tried = mistakes[0][1]
    rows = "\n".join(
        f"| {name} | {one.l0:.1f} | {one.fvu:.4f} | {one.cosine:.4f} | {one.relative_bias:.3f} | {one.delta_loss:+.4f} | {one.kl:.4f} | {one.loss_recovered_zero:.4f} | {one.loss_recovered_mean:.4f} |"
        for name, one in mistakes
    )
    return f"""# smollm2: the SAE that comes with gemscope

A JumpReLU sparse autoencoder of {sae.d_sae:,} features on the residual stream after block 15 (counted from 0, of 30) of
{model.name}, trained by this project. `gs.load_sae("smollm2")` loads it. Weights: Apache-2.0, as the model's.

| on held-out documents | |
| --- | --- |
| L0 | {score.l0:.1f} per token (standard deviation {score.l0_std:.0f}, 95 % of tokens ≤ {score.l0_p95}) |
| FVU (Σ‖x − x̂‖² / Σ‖x − μ‖², global mean) | {score.fvu:.4f} (explained variance {score.explained_variance:.4f}) |
| mean cosine | {score.cosine:.4f} |
| mean ‖x̂‖ / ‖x‖ | {score.l2_ratio:.4f} |
| relative reconstruction bias | {score.relative_bias:.4f} |
| dead (never fired) | {score.dead:.2%} |
| dense (fired on more than 10 %) | {score.dense:.2%} |
| delta loss, spliced | {score.delta_loss:+.4f} nats ({score.loss:.4f} → {score.spliced_loss:.4f}) |
| KL(clean ‖ spliced) | {score.kl:.4f} nats |
| loss with the site's mean in its place | {score.mean_loss:.4f} nats: {score.loss_recovered_mean:.2%} of the loss recovered, {score.kl_score_mean:.2%} of the KL |
| loss with zero in its place | {score.zero_loss:.4f} nats: {score.loss_recovered_zero:.2%} of the loss recovered, {score.kl_score_zero:.2%} of the KL |

Over {score.tokens:,} tokens ({score.loss_tokens:,} for the losses) of documents that the training never saw. Special tokens,
first positions and attention sinks are out of every figure ({score.masked:,} masked). The figures are those of the weights as
shipped, with the matrices in float16. docs/score.md defines each.

{beside}
{MISTAKES}

The same weights used wrongly, on {tried.tokens:,} of the same tokens ({tried.loss_tokens:,} for the losses):

| | L0 | FVU | cosine | bias | delta loss | KL | recovered, zero | recovered, mean |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

A layer off, or half a layer, costs five to six times the delta loss and nearly doubles FVU; a wrong sign is a ruin. Loss
recovered from zero ablation hardly tells the wrong sites apart. BOS, first positions and sinks have norms a hundred times
the others', no SAE is trained on them, and once they are counted the figures are about nothing else.
"""


BESIDE = "## On text unlike its own"
MISTAKES = "## What a mistake looks like"
"""What stands before and after the figures on unlike text."""
ORIGIN = "## Data\n"
"""Where the card's second half begins."""


def provenance(sae: gs.SAE, store: gs.Store, config: TrainConfig, held: Counter[str], silent: float) -> str:
    """The card's second half: what went into the weights, read from the run; `silent` is its last line's."""
    manifest = store.manifest
    count = manifest.sites[SITE]
    texts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in held.most_common())
    tail = "then scripture, an encyclopedia and the stories of games; " if "wikipedia" in held else ""
    return f"""## Data

{manifest.read:,} tokens read in rows of {manifest.length}, {count:,} of them kept; activations of the model in {manifest.dtype}, stored in float16.
They are the beginning of a shuffled mix of documents, in millions of characters, at most {PER_SOURCE / 1e6:.0f} of each source:
{texts}.
It is documentation, dictionaries and old novels before all, the free English text at hand ({tail}docs/corpus.md
lists the licences). `own-words` is everyday prose and conversation that the model itself wrote (`tools/own_words.py`),
sampled from varied openings: it is what this model believes such text to be. Expect features of that world, and few others.

## Training

{config.rows:,} rows ({config.rows / count:.1f} epochs) in batches of {config.batch:,}; target L0 {config.target_l0:g}, reached from {config.anneal_from:g} times as much over
the first {config.anneal:.0%}; a hinge of weight {config.frequency:g} on features that fire on more than {config.frequency_limit:.0%} of the rows; Adam, lr {config.lr:g}, linear decay
over the last {config.decay:.0%}; seed {config.seed}; thresholds rescaled by one factor at the end. Of the features {silent:.2%} had not fired
for the last {config.patience:,} rows: what counts as dead above are features of texts that the held-out documents have none of.
What other seeds come to, and how many of its features mean one thing, is in `docs/training-log.md`.
`recipes/smollm2-15-res.toml` is the recipe. {", ".join(f"{name} {number}" for name, number in manifest.versions.items())}.

To make it again: `make corpus own-words default-sae`.

## What to expect

The strongest activations of most features read clearly. The weakest, just above the threshold, are often noise. Another
seed gives a dictionary that is as good and shares half of its features with this one: take single features as one reading
of the model, not the reading. `gemscope info smollm2` gives the SHA-256 of the weights; these are `{sae.digest[:16]}…`.
"""


def ship(folder: Path) -> None:
    """The trained SAE as package data: matrices in float16, biases and thresholds in float32."""
    OUT.mkdir(parents=True, exist_ok=True)
    sae = gs.load_sae(folder)
    tensors = {
        name: (weight.half() if name in ("W_enc", "W_dec") else weight).contiguous()
        for name, weight in sae.state_dict().items()
    }
    save_file(tensors, OUT / "sae_weights.safetensors")
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["name"] = "smollm2"
    (OUT / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")


if __name__ == "__main__":
    main()
