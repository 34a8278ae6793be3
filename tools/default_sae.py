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
    documents = [json.loads(line) for path in corpora for line in gzip.open(path, "rt", encoding="utf-8")]
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
    parser.add_argument("--tokens", type=int, default=6_000_000)
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
    record = {"score": asdict(score), "harvest": asdict(store.manifest), "training": asdict(config)}
    (OUT / "record.json").write_text(json.dumps(record, indent=1) + "\n")


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
