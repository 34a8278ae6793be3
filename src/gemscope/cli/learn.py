"""Commands that make an SAE of one's own: harvest, train."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options, workers
from gemscope.cli.bars import Bars, bars
from gemscope.world import World

if TYPE_CHECKING:
    from gemscope.activations.store import Store
    from gemscope.training.config import TrainConfig
    from gemscope.training.group import Group
    from gemscope.training.log import Line, Watch
    from gemscope.training.source import Source


def add_to(commands: Any) -> None:
    """harvest, train."""
    harvest = commands.add_parser(
        "harvest",
        help="store a model's activations on a corpus",
        usage="gemscope harvest MODEL CORPUS --sites 15.res -o FOLDER [options]",
        description="Reads a corpus through a model once; keeps the activations of the tokens that count. A harvest "
        "that was cut off goes on with the pieces that are missing when started again.",
    )
    harvest.add_argument("model", metavar="MODEL")
    harvest.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="text, jsonl or parquet files or folders; `sample` for the bundled one",
    )
    harvest.add_argument("--sites", required=True, help="where to read, such as 15.res or 15.res,15.mlp")
    harvest.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="must not exist; s3://BUCKET/FOLDER: in a bucket"
    )
    harvest.add_argument("--tokens", type=int, help="stop after about this many (default: the whole corpus)")
    harvest.add_argument("--length", type=int, default=256, help="tokens per row of text (default 256)")
    harvest.add_argument("--batch", type=int, default=32, help="rows per pass (default 32)")
    harvest.add_argument(
        "--store-as",
        default="float16",
        choices=["float16", "bfloat16", "float32"],
        help="number format of what is kept (default float16)",
    )
    harvest.add_argument("--piece", type=int, metavar="BYTES", help="of text, at least, in a piece (default 524,288)")
    workers.add_workers(harvest)
    options.add_json(harvest)
    options.add_model(harvest)
    options.add_hub(harvest)
    harvest.set_defaults(run=_harvest, parser=harvest)

    train = commands.add_parser(
        "train",
        help="train an SAE on a model's activations",
        usage="gemscope train STORE [RECIPE.toml] -o FOLDER [options]\n"
        "       gemscope train --stream MODEL CORPUS --site 15.res [RECIPE.toml] -o FOLDER [options]",
        description="Trains an SAE (JumpReLU, unless the recipe says otherwise). STORE is what `gemscope harvest` made "
        "or a site's folder in it. A run that was cut off goes on when started again with the same settings. "
        "Several --sweep train all combinations from one reading of the data.",
    )
    train.add_argument("words", nargs="*", metavar="STORE [RECIPE]")
    train.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="the run: checkpoints, log.jsonl, report.html and sae/"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting over the recipe's, such as width=4096 or architecture=batchtopk",
    )
    train.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=A,B,...",
        help="an SAE for each value, in a folder of its own, such as target_l0=20,50,100; again for combinations",
    )
    train.add_argument("--site", help="which site of a store that holds several; a,b for a crosscoder of both")
    train.add_argument("--writes", metavar="SITE", help="train a transcoder: from --site to this one")
    train.add_argument("--held-out", metavar="STORE", help="other text's activations, to watch FVU and L0 on")
    train.add_argument(
        "--skip-corrupt", action="store_true", help="check the store's checksums; leave damaged shards out, by name"
    )
    train.add_argument("--log", default="", metavar="NAMES", help="tensorboard, wandb, or both, parted by a comma")
    ranks = train.add_argument_group("an SAE wider than one GPU (or processor), trained by several processes")
    ranks.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="share the features among N processes on this machine, each with a GPU of its own where there are GPUs; "
        "starts torchrun. For several machines start `torchrun ... -m gemscope train ...` on each",
    )
    ranks.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long a rank waits for another before it gives up (default 300)",
    )
    stream = train.add_argument_group("without a store")
    stream.add_argument(
        "--stream",
        nargs=2,
        metavar=("MODEL", "CORPUS"),
        help="compute the activations on the way, from text, jsonl or parquet files or a folder; `sample`: the bundled",
    )
    stream.add_argument("--buffer", type=int, metavar="ROWS", help="rows that are mixed (default: about 500,000)")
    stream.add_argument(
        "--sae-device",
        default="auto",
        metavar="DEVICE",
        help="where the SAE is trained (default: where the model runs)",
    )
    options.add_json(train)
    options.add_model(train)
    options.add_hub(train)
    train.set_defaults(run=_train, parser=train)


def _harvest(args: argparse.Namespace) -> int:
    from gemscope.activations.harvest import harvest
    from gemscope.text.corpus import PIECE
    from gemscope.text.rows import passed_over

    corpus = options.corpus_of(*args.corpus)
    with workers.crew(args) as crew, bars(crew.world.first) as progress:
        model = options.model_of(args, args.model, progress)
        harvested = partial(
            harvest,
            model,
            corpus,
            args.sites.split(","),
            to=args.out,
            tokens=args.tokens,
            length=args.length,
            batch=args.batch,
            dtype=args.store_as,
            piece=PIECE if args.piece is None else args.piece,
            progress=progress,
        )
        store = crew.done(lambda world: harvested(world=world), progress)
    manifest = store.manifest
    if args.json:
        names = ("sites", "read", "model", "passed", "dropped", "stored")
        facts = {name: getattr(manifest, name) for name in names}
        options.show({"folder": args.out, **facts}, True)
        return 0
    for site, count in manifest.sites.items():
        left_out = ", ".join(f"{number:,} {reason}" for reason, number in manifest.dropped[site].items() if number)
        options.say(
            f"{args.out}: {count:,} rows at {site} of {manifest.model}, from {manifest.read:,} tokens "
            f"(left out: {left_out})"
        )
    if told := passed_over(manifest.passed):
        options.say(told)
    run = f"runs/{args.sites.split(',')[0].replace('.', '-')}"
    options.lead(args, None, ("which features are in it?", ["train", str(args.out), "-o", run]))
    return 0


def _train(args: argparse.Namespace) -> int:
    from gemscope.errors import GemscopeError, InputError
    from gemscope.training.group import ALONE, Lost, joined, launched

    world = World.together()
    if args.ranks is not None and args.ranks < 1:
        raise InputError(f"--ranks {args.ranks}: expected a number from 1")
    if args.timeout <= 0:
        raise InputError(f"--timeout {args.timeout:g}: expected seconds")
    if args.ranks and world.size == 1:
        if args.ranks > 1:
            return launched(args.ranks, [*args.argv])
    elif args.ranks not in (None, world.size):
        raise InputError(f"--ranks {args.ranks} under torchrun, which started {world.size}: leave it")
    if world.size > 1:  # whoever ends a rank among others says why: torchrun, or the shell
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    group = ALONE
    try:
        with joined(world, timeout=args.timeout) as group:
            return _trained(args, group)
    except BaseException as error:
        if isinstance(error, Lost):  # torch would tidy up first, for seconds, what nobody is left to share
            atexit.register(_at_once)
        if not group.speaks(error):
            return 1
        if isinstance(error, GemscopeError):
            raise group.named(error) from error
        raise


def _at_once() -> None:
    """Ends the process, once all is said."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def _trained(args: argparse.Namespace, group: Group) -> int:
    from gemscope.reports.training import training_report
    from gemscope.training.train import sweep

    most = 1 if args.stream else 2
    if not most - 1 <= len(args.words) <= most:
        wanted = "--stream and at most a recipe" if args.stream else "a store, and a recipe or none"
        args.parser.error(f"{len(args.words)} arguments: give {wanted}")
    configs = _settings(args, args.words[most - 1] if len(args.words) == most else None)
    with bars(group.first) as progress:
        saes = sweep(
            _source(args, progress),
            configs,
            to=args.out,
            site=_sites(args.site),
            writes=args.writes,
            held_out=args.held_out,
            device=args.device if args.sae_device == "auto" and not args.stream else args.sae_device,
            log=args.log.split(",") if args.log else (),
            watch=_said(progress),
            progress=progress,
            group=group,
        )
    if not group.first:
        return 0
    reports = {name: training_report(Path(args.out, name)) for name in saes}
    for report in reports.values():
        report.write()
    if args.json:
        facts = {name: report.to_dict() for name, report in reports.items()}
        options.show({"runs": facts} if args.sweep else facts[""], True)
        return 0
    for report in reports.values():
        options.say(f"{report.sae}: {report}")
        options.say(f"  report {report.page}, card {report.card}, log {report.folder / 'log.jsonl'}")
    first = next(iter(reports.values()))
    if first.scored:
        pattern = Path(args.out, "*" if args.sweep else "", "sae")
        options.lead(args, None, ("how good is it?", ["score", first.model, str(pattern)]))
    return 0


def _settings(args: argparse.Namespace, recipe: str | None) -> dict[str, TrainConfig]:
    """What to train, by folder within the run's: one, or all combinations of a sweep."""
    from gemscope.errors import InputError
    from gemscope.training.config import TrainConfig

    config = TrainConfig.read(recipe) if recipe else TrainConfig()
    chosen = dict(_parted(one, "--set") for one in args.set)
    config = config.changed({name: _value(text) for name, text in chosen.items()}, where="--set")
    axes = [(name, text.split(",")) for name, text in (_parted(one, "--sweep") for one in args.sweep)]
    if len({name for name, _ in axes}) < len(axes):
        raise InputError(f"--sweep {args.sweep[-1]}: one --sweep for each setting, its values parted by commas")
    out = {}
    for values in product(*(texts for _, texts in axes)):
        named = list(zip((name for name, _ in axes), values, strict=True))
        folder = ",".join(f"{name}={text}" for name, text in named)
        out[folder] = config.changed({name: _value(text) for name, text in named}, where="--sweep")
    return out


def _parted(text: str, option: str) -> tuple[str, str]:
    from gemscope.errors import InputError

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"{option} {text}: expected NAME=VALUE, such as target_l0=50")
    return name.strip(), value.strip()


def _value(text: str) -> object:
    """A setting as TOML has it, several parted by commas as a list; what is none of TOML's is a word."""
    from gemscope.checked import toml_of
    from gemscope.errors import CorruptFile

    if "," in text:
        return [_value(one) for one in text.strip("[]").split(",") if one.strip()]
    with suppress(CorruptFile):
        return toml_of(f"value = {text}", dict[str, object], where="it")["value"]
    try:
        return float(text)  # .1 and 1. are numbers to everybody else
    except ValueError:
        return text


def _source(args: argparse.Namespace, progress: Bars) -> Source | Store:
    """The rows: a store, or a source that knows its sites."""
    from gemscope.activations.store import Store, is_store
    from gemscope.errors import InputError

    if not args.stream:
        folder = args.words[0].rstrip("/")
        above, _, name = folder.rpartition("/")
        if above and not is_store(folder) and is_store(above):
            if args.site not in (None, name):
                raise InputError(f"{folder} and --site {args.site}: name the site once")
            args.site, folder = name, above
        return Store(folder, skip_corrupt=args.skip_corrupt)
    from gemscope.training.source import StreamSource

    if args.site is None:
        raise InputError("--stream without --site: say where to read, such as --site 15.res")
    name, text = args.stream
    corpus = options.corpus_of(text)
    model = options.model_of(args, name, progress)
    buffer = {} if args.buffer is None else {"buffer": args.buffer}
    return StreamSource(model, corpus, _sites(args.site) or (), args.writes, progress=progress, **buffer)


def _sites(text: str | None) -> str | list[str] | None:
    return text.split(",") if text and "," in text else text


def _said(progress: Bars) -> Watch:
    """Puts what the logs say beside the bar: figures of one SAE, or the range of several."""
    latest: dict[str, Line] = {}

    def watch(name: str, line: Line) -> None:
        latest[name] = {**latest.get(name, {}), **line}
        parts = []
        for key, word, form in _SAID:
            values = sorted(one[key] for one in latest.values() if key in one)
            if values:
                span = dict.fromkeys(format(value, form) for value in (values[0], values[-1]))
                parts.append(f"{word} {' to '.join(span)}")
        progress.say("  ".join(parts))

    return watch


_SAID = (
    ("loss", "loss", ".3f"),
    ("l0", "L0", ".1f"),
    ("fvu", "FVU", ".3f"),
    ("held_out_fvu", "held out", ".3f"),
    ("silent", "silent", ".1%"),
    ("dense", "dense", ".1%"),
)
"""What is said on the way: a log's key, its word, its form."""
