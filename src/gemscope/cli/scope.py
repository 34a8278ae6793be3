"""Commands that make SAEs all over a model: scope make, scope plan, scope score."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options, workers
from gemscope.cli.bars import bars
from gemscope.pages.numbers import many
from gemscope.world import World

if TYPE_CHECKING:
    from gemscope.activations.model import LanguageModel
    from gemscope.scope.plan import Plan
    from gemscope.scope.recipe import ScopeRecipe
    from gemscope.text.corpus import Corpus


def add_to(commands: Any) -> None:
    """scope make, scope plan, scope score."""
    scope = commands.add_parser("scope", help="SAEs all over a model: make, plan, score").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    make = scope.add_parser(
        "make",
        help="train, score and describe the SAEs that a recipe names, at many sites of a model",
        description="Says first what it will take: passes of the model, disk, memory, hours. Stopped anywhere, the "
        "same command goes on. Any number of workers may run it at once, on machines that share the folder. They are "
        "told apart by the variables of torchrun, Slurm or Kubernetes, or by GEMSCOPE_SHARE=2/8, the third of eight.",
    )
    _add_what(make)
    make.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the scope, laid out as Gemma Scope's are")
    workers.add_workers(make, default=None)
    make.add_argument("--retry", action="store_true", help="of a scope that is there, try again what failed")
    options.add_json(make)
    options.add_model(make)
    options.add_hub(make)
    make.set_defaults(run=_make, parser=make)

    plan = scope.add_parser("plan", help="what making a scope would take; makes nothing")
    _add_what(plan)
    plan.add_argument("-o", "--out", default="scope", metavar="FOLDER", help="what is there already is left out")
    plan.add_argument(
        "--workers", type=int, metavar="N", help="for so many of this machine (default: as many as `make` would take)"
    )
    options.add_json(plan)
    options.add_model(plan)
    options.add_hub(plan)
    plan.set_defaults(run=_plan, parser=plan)

    score = scope.add_parser(
        "score",
        help="score the SAEs of a scope that have no score yet",
        description="Reads the text once for many SAEs, and leaves score.json beside each. Of the text that the scope "
        "was made from only those documents are read that nothing was trained on.",
    )
    score.add_argument("scope", metavar="SCOPE", help="a folder that `gemscope scope make` made")
    score.add_argument("corpus", nargs="*", metavar="CORPUS", help="default: the bundled sample")
    score.add_argument("--model", help="default: the one that the scope is of")
    score.add_argument("--tokens", type=int, default=50_000, help="read up to so many (default 50,000)")
    score.add_argument("--loss-tokens", type=int, default=10_000, help="of them for losses (default 10,000; 0: none)")
    _add_unlike(score)
    score.add_argument("--length", type=int, default=256, help="tokens per row of text (default 256)")
    score.add_argument("--memory", metavar="SIZE", help="such as 16GB (default: four fifths of what is free)")
    workers.add_workers(score)
    options.add_json(score)
    options.add_model(score)
    options.add_hub(score)
    score.set_defaults(run=_score, parser=score)


def _add_what(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL")
    command.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="text, jsonl or parquet files or folders; `sample` for the bundled one",
    )
    command.add_argument("recipe", metavar="RECIPE.toml", help="sites, widths and L0s, and how they are trained")
    _add_unlike(command)
    command.add_argument("--disk", metavar="SIZE", help="such as 50GB (default: four fifths of what is free)")
    command.add_argument("--memory", metavar="SIZE", help="such as 16GB (default: four fifths of what is free)")
    command.add_argument("--price", type=float, metavar="DOLLARS", help="of an hour of a worker: the plan says the sum")


def _add_unlike(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--unlike",
        action="append",
        default=[],
        metavar="CORPUS",
        help="text unlike the corpus, of which every SAE is given figures too; again for more files",
    )


def _unlike(args: argparse.Namespace) -> Corpus | None:
    return options.corpus_of(*args.unlike) if args.unlike else None


def _make(args: argparse.Namespace) -> int:
    from gemscope.scope.making import make_scope
    from gemscope.scope.recipe import ScopeRecipe

    recipe, corpus = ScopeRecipe.read(args.recipe), options.corpus_of(*args.corpus)
    first = World.here().first
    with bars(first) as progress:
        model = options.model_of(args, args.model, progress)
    told = _hands(args, model, corpus, recipe)
    with workers.crew(args) as crew, bars(first) as progress:
        table = make_scope(
            model,
            corpus,
            recipe,
            to=args.out,
            unlike=_unlike(args),
            disk=args.disk,
            memory=args.memory,
            price=args.price,
            retry=args.retry,
            world=crew.world,
            device=None if args.device == "auto" else args.device,
            told=partial(_tell, told),
            progress=progress,
        )
    options.show(table, args.json)
    return 0


def _plan(args: argparse.Namespace) -> int:
    from gemscope.scope.making import plan_scope
    from gemscope.scope.recipe import ScopeRecipe

    recipe, corpus = ScopeRecipe.read(args.recipe), options.corpus_of(*args.corpus)
    with bars() as progress:
        model = options.model_of(args, args.model, progress)
        told = _hands(args, model, corpus, recipe)
        workers.take_threads(args.workers)
        plan = plan_scope(
            model,
            corpus,
            recipe,
            to=args.out,
            unlike=_unlike(args),
            disk=args.disk,
            memory=args.memory,
            price=args.price,
            workers=args.workers,
            device=None if args.device == "auto" else args.device,
            progress=progress,
        )
    options.show(plan, args.json)
    if told and not args.json:
        options.say(told)
    return 0


def _score(args: argparse.Namespace) -> int:
    from gemscope.features.scope_manifest import read_scope
    from gemscope.scope.scoring import score_scope

    manifest = read_scope(Path(args.scope))
    corpus = options.corpus_of(*args.corpus)
    with workers.crew(args) as crew, bars(crew.world.first) as progress:
        table = score_scope(
            options.model_of(args, args.model or manifest.model, progress),
            args.scope,
            corpus,
            tokens=args.tokens,
            loss_tokens=args.loss_tokens,
            unlike=_unlike(args),
            length=args.length,
            memory=args.memory,
            world=crew.world,
            progress=progress,
        )
    options.show(table, args.json)
    return 0


def _hands(args: argparse.Namespace, model: LanguageModel, corpus: Corpus, recipe: ScopeRecipe) -> str:
    """Chooses how many workers there are, where nobody says; and says so."""
    if args.workers is not None:
        return ""
    if World.here().size > 1:  # whoever started them chose
        args.workers = 1
        return ""
    from gemscope.scope.making import workers_for

    device = None if args.device == "auto" else args.device
    room = {"to": args.out, "disk": args.disk, "memory": args.memory, "device": device}
    args.workers, why = workers_for(model, corpus, recipe, **room)
    return f"  {many(args.workers, 'worker')}, {why} (--workers)"


def _tell(chosen: str, plan: Plan) -> None:
    """On stderr: stdout has the table of what was made."""
    from gemscope.pages.plain import plain

    print(plain(plan), *filter(None, [chosen]), sep="\n", file=sys.stderr, flush=True)
