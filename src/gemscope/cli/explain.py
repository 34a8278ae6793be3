"""The command that labels features and scores labels: explain, by rules or by asking a language model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars
from gemscope.errors import InputError
from gemscope.progress import Progress

if TYPE_CHECKING:
    from gemscope.atlas.labels.questions import Answerer
    from gemscope.atlas.labels.scoring import Scored
    from gemscope.atlas.reader import Atlas


def add_to(commands: Any) -> None:
    """explain."""
    explain = commands.add_parser(
        "explain",
        help="label every feature of an atlas with the rule that its examples teach, or by asking a language model",
        description="Learns from each feature's own examples what it fires on, as a rule in words that can be run on "
        "any text, writes it into the atlas, and scores it on rows that no example came from. No model is asked. With "
        "--endpoint or --model-here a chat model is shown examples of features without a sure label, and says it in "
        "words and as a rule. What people wrote stays, and stays on top. With --on nothing is labelled: the labels "
        "that are there are tried on another text.",
    )
    explain.add_argument("folder", metavar="ATLAS")
    explain.add_argument("features", nargs="*", type=int, metavar="FEATURE", help="these alone (default: all)")
    options.add_json(explain)
    asked = explain.add_argument_group("asking a language model")
    who = asked.add_mutually_exclusive_group()
    who.add_argument(
        "--endpoint", metavar="URL", help="a server that speaks chat completions, such as http://localhost:8000/v1"
    )
    who.add_argument("--model-here", metavar="NAME", help="a chat model of the Hub, or in a folder, in this process")
    who.add_argument("--on", metavar="CORPUS", help="no model: try the labels on this text, of which no example is")
    asked.add_argument("--tokens", type=int, default=1 << 16, help="of that text (default 65,536)")
    asked.add_argument("--model", metavar="NAME", help="the model that the server offers")
    asked.add_argument("--limit", type=int, metavar="N", help="so many features, those that fire most first")
    asked.add_argument("--dry-run", action="store_true", help="ask nobody: what it would take, and one question whole")
    asked.add_argument(
        "--price",
        nargs=2,
        type=float,
        metavar=("IN", "OUT"),
        help="of a million tokens, for --dry-run",
    )
    asked.add_argument("--again", action="store_true", help="ask once more where an answer failed in an earlier run")
    asked.add_argument("--score", action="store_true", help="have the model judge the words too, on text held out")
    asked.add_argument("--max-tokens", type=int, default=400, metavar="N", help="of an answer (default 400)")
    server = explain.add_argument_group("a server")
    server.add_argument("--rate", type=float, metavar="N", help="requests a minute at most")
    server.add_argument("--at-once", type=int, default=4, metavar="N", help="questions under way together (default 4)")
    server.add_argument("--deadline", type=float, default=300, metavar="S", help="seconds for a question (default 300)")
    server.add_argument(
        "--key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="variable of the environment with the key, '' to send none (default OPENAI_API_KEY)",
    )
    server.add_argument("--plain-http", action="store_true", help="send the key unencrypted to another machine too")
    options.add_model(explain)
    options.add_hub(explain)
    explain.set_defaults(run=_explain, parser=explain)


def _explain(args: argparse.Namespace) -> int:
    from gemscope.atlas.labels.rules import explain
    from gemscope.atlas.reader import Atlas

    if args.endpoint is None and args.model_here is None:
        if args.model or args.dry_run:
            raise InputError("no server is named to be asked: give --endpoint URL --model NAME, or --model-here NAME")
    elif (args.endpoint is None) == (args.model is not None):
        raise InputError("--endpoint URL takes --model NAME beside it, --model-here NAME takes none")
    told: Any
    with bars() as progress, Atlas(args.folder) as atlas:
        if args.on is not None:
            told = _on_another(atlas, args, progress)
        elif args.endpoint is None and args.model_here is None:
            told = explain(atlas, args.features or None, progress=progress)
        else:
            from gemscope.atlas.labels.asking import estimate, explain_with

            by, chosen = _asked(args, progress), args.features or None
            if args.dry_run:
                price = tuple(args.price) if args.price else None
                told = estimate(atlas, by, chosen, limit=args.limit, again=args.again, score=args.score, price=price)
            else:
                told = explain_with(
                    atlas, by, chosen, limit=args.limit, again=args.again, score=args.score, progress=progress
                )
    if args.json:
        options.show({"folder": args.folder, **(told.to_dict() if hasattr(told, "to_dict") else asdict(told))}, True)
        return 0
    options.say(str(told))
    if not args.dry_run:
        options.lead(args, None, ("what are its features?", ["serve", args.folder]))
    return 0


def _on_another(atlas: Atlas, args: argparse.Namespace, progress: Progress) -> Scored:
    from gemscope.app.nearby import Nearby
    from gemscope.atlas.describe.elsewhere import read_elsewhere
    from gemscope.atlas.labels.scoring import score_labels

    corpus = options.corpus_of(args.on)
    model, sae = Nearby()(atlas.manifest)
    pool = read_elsewhere(atlas, model, sae, corpus, tokens=args.tokens, progress=progress)
    return score_labels(atlas, args.features or None, on=pool, text=corpus.name, progress=progress)


def _asked(args: argparse.Namespace, progress: Progress) -> Answerer:
    if args.model_here is not None:
        from gemscope.atlas.labels.here import Here

        return Here(options.model_of(args, args.model_here, progress), most=args.max_tokens)
    from gemscope.atlas.labels.endpoint import Endpoint

    return Endpoint(
        args.endpoint,
        args.model,
        key_env=args.key_env,
        at_once=args.at_once,
        rate=args.rate,
        deadline=args.deadline,
        most=args.max_tokens,
        plain_http=args.plain_http,
    )
