"""Commands that read text through a model and an SAE: look, check, score."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options, workers
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.reports.score import Score
    from gemscope.reports.sweep import Comparison
    from gemscope.text.chat import OneText


def add_to(commands: Any) -> None:
    """look, check, score."""
    look = commands.add_parser(
        "look",
        help="which features fire on each token of a text",
        usage="gemscope look [MODEL SAE] TEXT [options]",
        description="Reads a text through a model and an SAE (default: the bundled ones). TEXT - reads stdin. "
        "Where SAE stands for several (a folder, a pattern, --also), all are read in one pass: tokens by layers, with "
        "what the atlas beside each says.",
    )
    look.add_argument("words", nargs="+", metavar="[MODEL SAE] TEXT")
    look.add_argument(
        "--also", action="append", default=[], metavar="SAE", help="one more, or a pattern; again for more"
    )
    look.add_argument("-k", type=int, default=3, help="features shown per token (default 3)")
    look.add_argument(
        "--order", choices=("telling", "activation"), help="features of a token by what they say, or by strength alone"
    )
    look.add_argument(
        "--max-density", type=float, default=1.0, metavar="SHARE", help="leave out what fires on more of the tokens"
    )
    options.add_atlas(look)
    options.add_chat(look)
    _common(look)
    look.set_defaults(run=_look, parser=look)

    check = commands.add_parser(
        "check",
        help="is this the right site, scale and token mask for the SAE?",
        usage="gemscope check [MODEL SAE [CORPUS]] [options]",
        description="Runs the SAE where it says it reads, and where else it might belong, on a few hundred tokens.",
    )
    check.add_argument("words", nargs="*", metavar="[MODEL SAE [CORPUS]]")
    check.add_argument("--tokens", type=int, default=512, help="about how many to read (default 512)")
    _common(check)
    check.set_defaults(run=_check, parser=check)

    score = commands.add_parser(
        "score",
        help="how good the SAE is: L0, explained variance, dead features, delta loss, KL",
        usage="gemscope score [MODEL SAE [CORPUS]] [--also SAE ...] [options]",
        description="Figures over a corpus (text, jsonl or parquet files; default: the bundled sample). SAE may be a "
        "pattern, such as 'REPO/layer_20/width_16k/*', a folder with several or a set of transcoders: all of them are "
        "compared, over one reading of the text. A cross-layer transcoder has figures for each layer.",
    )
    score.add_argument("words", nargs="*", metavar="[MODEL SAE [CORPUS]]")
    score.add_argument(
        "--also", action="append", default=[], metavar="SAE", help="one more to compare, or a pattern; again for more"
    )
    score.add_argument("--tokens", type=int, default=50_000, help="about how many to read (default 50000)")
    score.add_argument(
        "--loss-tokens",
        type=int,
        default=10_000,
        help="how many of them again, spliced and ablated (default 10000; 0: no losses)",
    )
    score.add_argument(
        "--unlike",
        action="append",
        default=[],
        metavar="CORPUS",
        help="the same figures on another text, unlike what the SAE learned from; again for more files",
    )
    score.add_argument(
        "--keep",
        action="store_true",
        help="leave score.json beside the SAE, in its folder here, and the figures in the card of its training",
    )
    score.add_argument("--html", metavar="FILE", help="write the figures and plots there as one HTML file")
    score.add_argument("--piece", type=int, metavar="BYTES", help="of text, at least, in a piece (default 65,536)")
    score.add_argument(
        "--pieces",
        metavar="FOLDER",
        help="keep the pieces there: what stops goes on, and workers elsewhere share it",
    )
    workers.add_workers(score)
    _common(score)
    score.set_defaults(run=_score, parser=score)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--every-token", action="store_true", help="count special tokens, first positions and sinks too"
    )
    options.add_json(command)
    options.add_model(command)
    options.add_sae(command)
    options.add_hub(command)


def _named(args: argparse.Namespace, most: int) -> tuple[str, str, str | None]:
    """MODEL, SAE and the thing, of a command whose first two go together."""
    words = args.words
    if len(words) in (2, 3)[: most - 1]:
        return words[0], words[1], words[2] if len(words) == 3 else None
    if not words:
        return options.DEFAULT, options.DEFAULT, None
    raise SystemExit(args.parser.error(f"{len(words)} arguments: MODEL and SAE go together"))


def _look(args: argparse.Namespace) -> int:
    from gemscope.features.listing import each_of
    from gemscope.reports.look import look

    if len(args.words) not in (1, 3):
        args.parser.error(
            f"{len(args.words)} arguments: give TEXT, or MODEL, SAE and TEXT (a text of several words in quotes)"
        )
    *named, text = args.words
    name, address = named or (options.DEFAULT, options.DEFAULT)
    text = options.text_of(args, text)
    addresses = list(dict.fromkeys(one for each in (address, *args.also) for one in each_of(each)))
    if len(addresses) > 1:
        return _look_through(args, name, addresses, text)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        how = {"atlas": args.atlas, "order": args.order, "max_density": args.max_density}
        seen = look(model, sae, text, k=args.k, every_token=args.every_token, **how)
    options.show(seen, args.json)
    first = seen.foremost[0].feature if seen.foremost else None
    options.lead(args, first, ("is this the right place and scale?", ["check", *named]))
    return 0


def _look_through(args: argparse.Namespace, name: str, addresses: list[str], text: OneText) -> int:
    """Several SAEs in one pass, each with the atlas that lies beside it."""
    from gemscope.features.scope_manifest import ATLAS
    from gemscope.reports.looks import look_through

    if args.atlas is not None:
        args.parser.error(f"--atlas is of one SAE, and {len(addresses)} are given: theirs are found beside them")
    with bars() as progress:
        model = options.model_of(args, name, progress)
        saes = [options.sae_of(args, one, progress, model) for one in addresses]
        beside = [Path(one) / ATLAS for one in addresses]
        atlases = {sae.site: one for sae, one in zip(saes, beside, strict=True) if sae.site and one.is_dir()}
        how = {"order": args.order, "max_density": args.max_density, "atlases": atlases}
        found = look_through(model, saes, text, k=args.k, every_token=args.every_token, **how)
    options.show(found, args.json)
    return 0


def _check(args: argparse.Namespace) -> int:
    from gemscope.reports.checking import check

    name, address, corpus = _named(args, 3)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        found = check(
            model, sae, options.corpus_of(corpus), tokens=args.tokens, every_token=args.every_token, progress=progress
        )
    options.show(found, args.json)
    return 0


def _score(args: argparse.Namespace) -> int:
    from gemscope.features.files.cross_layer import is_clt
    from gemscope.features.listing import each_of
    from gemscope.features.sae import SAE
    from gemscope.reports.keeping import keep
    from gemscope.reports.score import Score
    from gemscope.reports.scoring import score
    from gemscope.reports.sweep import compare

    name, address, corpus = _named(args, 3)
    given = [address, *args.also]
    how: dict[str, Any] = {key: getattr(args, key) for key in ("tokens", "loss_tokens", "every_token")}
    found: Score | Comparison
    if args.piece is not None:
        how["piece"] = args.piece
    if args.unlike:
        how["unlike"] = options.corpus_of(*args.unlike)
    with workers.shared(args), workers.crew(args) as crew, bars(crew.world.first) as progress:
        # What can be wrong with the names comes out before a model is loaded.
        addresses = dict.fromkeys(one for each in given for one in each_of(each))
        if args.keep:
            _require_own(addresses, every_token=args.every_token)
        text = options.corpus_of(corpus)
        model = options.model_of(args, name, progress)
        saes = [
            options.clt_of(args, one, progress) if is_clt(one) else options.sae_of(args, one, progress, model)
            for one in addresses
        ]
        if list(addresses) == [address] and isinstance(saes[0], SAE):
            scored: Callable[..., Score | Comparison] = partial(score, model, saes[0], text)
        else:
            scored = partial(compare, model, saes, text)
        found = crew.done(lambda world: scored(pieces=args.pieces, world=world, progress=progress, **how), progress)
    if args.keep:
        for place, one in zip(addresses, [found] if isinstance(found, Score) else found.scores, strict=True):
            keep(one, place)
    options.show(found, args.json, args.html)
    return 0


def _require_own(addresses: Iterable[str], *, every_token: bool) -> None:
    """Figures can be kept beside SAEs that lie here, each in its folder; those that mislead are not."""
    from gemscope.checked import existing, shown
    from gemscope.errors import InputError
    from gemscope.features.files.cross_layer import is_clt

    if every_token:
        raise InputError("--keep with --every-token: such figures mislead, and are not kept; leave one out")
    for one in addresses:
        place = existing(one)
        if place is None or not place.is_dir() or is_clt(one):
            raise InputError(f"--keep: {shown(one)} is no SAE in a folder here, beside which figures could be kept")
