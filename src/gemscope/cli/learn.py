"""Commands that make an SAE of one's own: harvest, train."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from gemscope.cli import options
from gemscope.cli.bars import bars


def add_to(commands: Any) -> None:
    """harvest, train."""
    harvest = commands.add_parser(
        "harvest",
        help="store a model's activations on a corpus",
        usage="gemscope harvest MODEL CORPUS --sites 15.res -o FOLDER [options]",
        description="Reads a corpus through a model once; keeps the activations of the tokens that count, in float16.",
    )
    harvest.add_argument("model", metavar="MODEL")
    harvest.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="text, jsonl or parquet files or folders; `sample` for the bundled one",
    )
    harvest.add_argument("--sites", required=True, help="where to read, such as 15.res or 15.res,15.mlp")
    harvest.add_argument("-o", "--out", required=True, metavar="FOLDER", help="must not exist")
    harvest.add_argument("--tokens", type=int, help="stop after about this many (default: the whole corpus)")
    harvest.add_argument("--length", type=int, default=256, help="tokens per row of text (default 256)")
    harvest.add_argument("--batch", type=int, default=32, help="rows per pass (default 32)")
    options.add_json(harvest)
    options.add_model(harvest)
    options.add_hub(harvest)
    harvest.set_defaults(run=_harvest, parser=harvest)

    train = commands.add_parser(
        "train",
        help="train an SAE on stored activations",
        usage="gemscope train STORE -o FOLDER [--recipe FILE.toml] [options]",
        description="Trains a JumpReLU SAE. A run that was cut off goes on when started again with the same settings.",
    )
    train.add_argument("store", metavar="STORE", help="what `gemscope harvest` made")
    train.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="the run: checkpoints, log.jsonl, and sae/ at the end"
    )
    train.add_argument("--recipe", metavar="FILE", help="TOML file with a [train] table")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting over the recipe's, such as width=4096",
    )
    train.add_argument("--site", help="which site of a store that holds several")
    train.add_argument("--held-out", metavar="STORE", help="other text's activations, to watch FVU and L0 on")
    options.add_json(train)
    train.set_defaults(run=_train, parser=train)


def _harvest(args: argparse.Namespace) -> int:
    from gemscope.activations.harvest import harvest
    from gemscope.text.corpus import Corpus

    corpus = Corpus.sample() if args.corpus == ["sample"] else Corpus.read(args.corpus)
    with bars() as progress:
        model = options.model_of(args, args.model, progress)
        store = harvest(
            model,
            corpus,
            args.sites.split(","),
            to=args.out,
            tokens=args.tokens,
            length=args.length,
            batch=args.batch,
            progress=progress,
        )
    manifest = store.manifest
    if args.json:
        options.show(
            {"folder": args.out, "sites": dict(manifest.sites), "read": manifest.read, "model": manifest.model}, True
        )
        return 0
    for site, count in manifest.sites.items():
        print(f"{args.out}: {count:,} rows at {site} of {manifest.model}, from {manifest.read:,} tokens")
    print(f"Next: gemscope train {args.out} -o runs/{args.sites.split(',')[0].replace('.', '-')}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from gemscope.training.config import TrainConfig
    from gemscope.training.train import train

    config = TrainConfig.read(args.recipe) if args.recipe else TrainConfig()
    if args.set:
        changed = {name: _value(name, text) for name, _, text in (one.partition("=") for one in args.set)}
        config = TrainConfig.of(
            {field.name: getattr(config, field.name) for field in fields(config)} | changed, where="--set"
        )
    with bars() as progress:
        sae = train(args.store, config, to=args.out, site=args.site, held_out=args.held_out, progress=progress)
    facts = {"sae": f"{args.out}/sae", "site": str(sae.site), "d_sae": sae.d_sae, "log": f"{args.out}/log.jsonl"}
    if args.json:
        options.show(facts, True)
        return 0
    print(
        f"{facts['sae']}: {sae.d_sae} features at {sae.site}, a folder that SAELens reads too; "
        f"the run's log is {facts['log']}"
    )
    print(f"Next: gemscope score {sae.info.model} {facts['sae']}")
    return 0


def _value(name: str, text: str) -> object:
    """A setting as the number that it is."""
    from gemscope.errors import InputError

    try:
        return int(text.replace("_", ""))
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--set {name}={text}: expected a number") from None
