"""Makes the SAE that ships as `smollm2`: mix of texts, harvest, training, score, weights and card. One command:

    make default-sae          # runs: python tools/default_sae.py, with the two corpora in place

Steps whose result is there already are passed over, so a run that was cut off goes on where it stopped. Needs about
10 GB of disk and an hour on two cores.
"""

import argparse
import gzip
import json
import os
import random
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

import gemscope as gs
from gemscope.cli.bars import bars
from gemscope.training.config import TrainConfig

SITE = "15.res"
OUT = Path("src/gemscope/data/smollm2-15-res")
PER_SOURCE = 2_000_000
"""Characters of each source at most: no single manual or dictionary shall dominate."""
PER_DOCUMENT = 24_000
HELD_OUT = 0.025


def mixed(corpora: list[Path], to: Path, seed: int) -> None:
    """Documents of all corpora in one shuffled file, long ones and large sources cut."""
    dice = random.Random(seed)
    documents = [asdict(document) for document in gs.Corpus.read(corpora)]
    dice.shuffle(documents)
    held: Counter[str] = Counter()
    aside = to.with_name(f".{to.name}")
    with aside.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
        for document in documents:
            text = document["text"]
            if len(text) > PER_DOCUMENT:
                start = text.find("\n", dice.randrange(len(text) - PER_DOCUMENT)) + 1
                text = text[start : start + PER_DOCUMENT]
            if held[document["source"]] + len(text) > PER_SOURCE:
                continue
            held[document["source"]] += len(text)
            packed.write((json.dumps({**document, "text": text}) + "\n").encode())
    os.replace(aside, to)
    print(f"{to}: {sum(held.values()) / 1e6:.1f} MB: {dict(held)}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/smollm2-15-res.toml"))
    parser.add_argument("--corpora", type=Path, default=Path("corpora"))
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2-15-res"))
    parser.add_argument("--tokens", type=int, default=3_200_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.read(args.recipe)
    mix = args.work / "mix.jsonl.gz"
    if not mix.exists():
        mixed([args.corpora / f"{name}.jsonl.gz" for name in ("english-permissive", "own-words")], mix, config.seed)
    training, held_out = gs.Corpus.read(mix).split(HELD_OUT)
    model = gs.load_model("smollm2")
    with bars() as progress:
        for corpus, folder, tokens in ((held_out, "held-out", 200_000), (training, "train", args.tokens)):
            if not (args.work / folder).exists():
                gs.harvest(model, corpus, [SITE], to=args.work / folder, tokens=tokens, progress=progress)
        gs.train(args.work / "train", config, to=args.work / "run", held_out=args.work / "held-out", progress=progress)
        ship(args.work / "run" / "sae")
        sae = gs.load_sae("smollm2")
        score = gs.score(model, sae, held_out, tokens=120_000, progress=progress)
    print(score)
    store = gs.Store(args.work / "train")
    (OUT / "README.md").write_text(card(sae, score, store, config, sources(mix)))


def sources(mix: Path) -> Counter[str]:
    """Characters of each source in the mix."""
    held: Counter[str] = Counter()
    for document in gs.Corpus.read(mix):
        held[document.source] += len(document.text)
    return held


def card(sae: gs.SAE, score: gs.Score, store: gs.Store, config: TrainConfig, held: Counter[str]) -> str:
    """The model card, every figure of it measured or read from the run."""
    manifest = store.manifest
    count = manifest.sites[SITE]
    texts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in held.most_common())
    return f"""# smollm2: the SAE that comes with gemscope

A JumpReLU sparse autoencoder of {sae.d_sae:,} features on the residual stream after block 15 (counted from 0, of 30) of
{manifest.model}, trained by this project. `gs.load_sae("smollm2")` loads it. Weights: Apache-2.0, as the model's.

| on held-out documents | |
| --- | --- |
| L0 | {score.l0:.1f} per token (standard deviation {score.l0_std:.0f}) |
| FVU (Σ‖x − x̂‖² / Σ‖x − μ‖², global mean) | {score.fvu:.4f} (explained variance {score.explained_variance:.4f}) |
| mean cosine | {score.cosine:.4f} |
| dead (never fired) | {score.dead:.2%} |
| dense (fired on more than 10 %) | {score.dense:.2%} |
| delta loss, spliced | {score.delta_loss:+.4f} nats ({score.loss:.4f} → {score.spliced_loss:.4f}) |
| KL(clean ‖ spliced) | {score.kl:.4f} nats |

Over {score.tokens:,} tokens ({score.loss_tokens:,} for the losses) of documents that the training never saw. Special tokens,
first positions and attention sinks are out of every figure ({score.masked:,} masked): with them in, FVU would look a
hundred times better and mean nothing. The figures are those of the weights as shipped, with the matrices in float16.

## Data

{manifest.read:,} tokens read in rows of {manifest.length}, {count:,} of them kept; activations of the model in {manifest.dtype}, stored in float16.
They are the beginning of a shuffled mix of documents, in millions of characters, at most {PER_SOURCE / 1e6:.0f} of each source:
{texts}.
Nearly all of it is documentation, dictionaries and Jane Austen, the permissive English text at hand (`make corpus` rebuilds
it and lists the licences). `own-words` is everyday prose and conversation that the model itself wrote (`tools/own_words.py`),
sampled from varied openings: it is what this model believes such text to be. Expect features of that world, and few others.

## Training

{config.rows:,} rows ({config.rows / count:.1f} epochs) in batches of {config.batch:,}; target L0 {config.target_l0:g}, reached from {config.anneal_from:g} times as much over
the first {config.anneal:.0%}; Adam, lr {config.lr:g}, linear decay over the last {config.decay:.0%}; seed {config.seed}; thresholds rescaled by one factor at the end.
`recipes/smollm2-15-res.toml` is the recipe. {", ".join(f"{name} {number}" for name, number in manifest.versions.items())}.

To make it again: `make corpus own-words default-sae`.

## What to expect

The strongest activations of most features read clearly. The weakest, just above the threshold, are often noise. Another
seed gives a dictionary that is as good and shares few features with this one: take single features as one reading of the
model, not the reading. `gemscope info smollm2` gives the SHA-256 of the weights; these are `{sae.digest[:16]}…`.
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
