"""The command that shows two things side by side: compare."""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas

_FEATURE = re.compile(r"(?:(?P<folder>.+)/)?(?P<index>[0-9]{1,9})")


def add_to(commands: Any) -> None:
    """compare."""
    compare = commands.add_parser(
        "compare",
        help="two features, two texts or two SAEs side by side",
        usage="gemscope compare FEATURE FEATURE [options]\n       gemscope compare [MODEL SAE] --text TEXT TEXT "
        "[options]\n       gemscope compare ATLAS ATLAS [options]",
        description="Two features: FEATURE is a number, of the bundled atlas or of --atlas, or ATLAS/NUMBER. Two texts "
        "through a model and an SAE (default: the bundled ones). Two SAEs, by an atlas of each: features are matched "
        "by their decoders where the SAEs are on this machine, else by where they fire. (Figures of several SAEs on "
        "the same text: gemscope score.)",
    )
    compare.add_argument("words", nargs="*", metavar="FEATURE | ATLAS")
    compare.add_argument("--text", nargs=2, metavar="TEXT", help="two texts")
    compare.add_argument("-k", type=int, default=12, help="features shown of each kind, of texts and SAEs (default 12)")
    options.add_atlas(compare)
    options.add_json(compare)
    options.add_chat(compare)
    options.add_model(compare)
    options.add_sae(compare)
    options.add_hub(compare)
    compare.set_defaults(run=_compare, parser=compare)


def _compare(args: argparse.Namespace) -> int:
    if args.text is not None:
        return _texts(args)
    if len(args.words) != 2:
        args.parser.error(f"{len(args.words)} arguments: give two features, two atlases, or two texts with --text")
    features = [_FEATURE.fullmatch(word) for word in args.words]
    if all(features):
        return _features(args, [(one["folder"], int(one["index"])) for one in features if one])
    if any(features):
        args.parser.error(f"{args.words[0]} and {args.words[1]}: one is a feature, the other is none")
    return _atlases(args)


def _features(args: argparse.Namespace, named: list[tuple[str | None, int]]) -> int:
    from gemscope.reports.feature_pair import compare_features

    with ExitStack() as stack:
        opened: dict[str | None, Atlas] = {}
        for folder, _ in named:
            if folder not in opened:
                opened[folder] = stack.enter_context(closing(_atlas(args, folder)))
        (first, one), (second, other) = named
        beside = None if first == second else opened[second]
        found = compare_features(
            opened[first], one, other, beside=beside, saes=None if beside is None else _weights(opened[first], beside)
        )
        links = options.links_to(opened[first]) if first == second and not args.json else None
    options.show(found, args.json)
    if links is not None and (url := links.compare(one, other)):
        from gemscope.pages.feature import linked

        print()
        options.show(linked(f"  {'page':<13}", url), False)
    options.lead(args, one if first is None else None)
    return 0


def _texts(args: argparse.Namespace) -> int:
    from gemscope.reports.text_pair import compare_texts

    if len(args.words) not in (0, 2):
        args.parser.error(f"{len(args.words)} words beside --text: MODEL and SAE go together")
    if "-" in args.text:
        args.parser.error("--text: two texts cannot come from stdin, give both")
    name, address = args.words or (options.DEFAULT, options.DEFAULT)
    one, other = (options.text_of(args, text) for text in args.text)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        found = compare_texts(model, sae, one, other, k=args.k, atlas=args.atlas)
    options.show(found, args.json)
    options.lead(args, next(iter(found.named), None) if found.order == "telling" else None)
    return 0


def _atlases(args: argparse.Namespace) -> int:
    from gemscope.reports.atlas_pair import compare_atlases

    with bars() as progress, ExitStack() as stack:
        one, other = (stack.enter_context(closing(_atlas(args, folder))) for folder in args.words)
        found = compare_atlases(one, other, saes=_weights(one, other), k=args.k, progress=progress)
    options.show(found, args.json)
    return 0


def _atlas(args: argparse.Namespace, folder: str | None) -> Atlas:
    from gemscope.atlas.load import load_atlas

    return options.atlas_of(args) if folder is None else load_atlas(folder)


def _weights(one: Atlas, other: Atlas) -> Any:
    """The SAEs of two atlases, where both are on this machine."""
    from gemscope.errors import GemscopeError
    from gemscope.reports.atlas_pair import opened

    try:
        return opened(one.manifest), opened(other.manifest)
    except GemscopeError:
        return None
