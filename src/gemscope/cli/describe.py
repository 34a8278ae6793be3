"""The command that makes an atlas: describe."""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from gemscope.cli import options, workers
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.activations.store import Store
    from gemscope.text.corpus import Corpus

_SETTINGS = {
    "top": "strongest examples of each feature",
    "each": "examples from each range of its activations",
    "before": "tokens shown in front of an example's own",
    "after": "tokens shown behind it",
    "length": "tokens per row of text",
    "batch": "rows per pass of the model",
    "effect_tokens": "tokens over which the effect of the site is measured (0: none)",
    "pool": "tokens of rows held out to score labels on (0: none)",
}


def add_to(commands: Any) -> None:
    """describe."""
    describe = commands.add_parser(
        "describe",
        help="make an atlas: a page for every feature, from one pass over text",
        usage="gemscope describe [MODEL SAE CORPUS ...] [-o ATLAS] [options]",
        description="Reads text once and writes every feature's page: how often and how strongly it fires, where, "
        "what it promotes, what is like it. A pass that was stopped goes on with the pieces that are missing when "
        "started again with the same arguments. Without MODEL, SAE and CORPUS: the bundled ones.",
        epilog="Each CORPUS is packed by itself, so that atlases of several, merged, equal one of all. A folder that "
        "`gemscope harvest` made stands for its text: the model is not run.",
    )
    describe.add_argument("words", nargs="*", metavar="[MODEL SAE CORPUS ...]", help="`sample` is the bundled text")
    describe.add_argument("-o", "--out", metavar="ATLAS", help="the atlas's folder, which must not exist")
    describe.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="SAE",
        help="another SAE in the same pass: ATLAS is then the folder of their atlases",
    )
    describe.add_argument("--tokens", type=int, help="stop after about this many (default: all of the text)")
    group = describe.add_argument_group("what the atlas holds")
    for name, what in _SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=int, help=what)
    group.add_argument(
        "--effect", metavar="FILE", help="the effect of the site, measured before (gemscope effect --file FILE)"
    )
    describe.add_argument("--piece", type=int, metavar="BYTES", help="of text, at least, in a piece (default 524,288)")
    workers.add_workers(describe)
    options.add_json(describe)
    options.add_model(describe)
    options.add_sae(describe)
    options.add_hub(describe)
    describe.add_argument("--no-map", action="store_true", help="no map of the features (many take a while)")
    describe.set_defaults(run=_describe, parser=describe)


def _describe(args: argparse.Namespace) -> int:
    from gemscope.atlas.describe.gather import DescribeConfig
    from gemscope.atlas.describe.run import describe
    from gemscope.text.corpus import PIECE

    if len(args.words) in (1, 2):
        args.parser.error(f"{len(args.words)} arguments: give MODEL, SAE and CORPUS, or none of them")
    name, address, *texts = args.words or (options.DEFAULT, options.DEFAULT, "sample")
    from gemscope.features.effect import Effect

    settings = {
        name.removesuffix("_tokens"): getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None
    }
    effect = Effect.load(args.effect) if args.effect else None
    config = DescribeConfig(**{field.name: settings.get(field.name, field.default) for field in fields(DescribeConfig)})
    with workers.crew(args) as crew, bars(crew.world.first) as progress:
        model = options.model_of(args, name, progress)
        saes = [options.sae_of(args, one, progress, model) for one in (address, *args.also)]
        sources = [_source(text) for text in texts]
        out = args.out or f"{saes[0].info.name.rstrip('/').split('/')[-1]}.atlas"
        described = partial(
            describe,
            model,
            saes if args.also else saes[0],
            sources[0] if len(sources) == 1 else sources,
            to=out,
            tokens=args.tokens,
            config=config,
            effect=effect,
            map=not args.no_map,
            piece=PIECE if args.piece is None else args.piece,
            progress=progress,
        )
        made = crew.done(lambda world: described(world=world), progress)
    atlases = made if isinstance(made, list) else [made]
    if args.json:
        options.show({"atlases": [_told(atlas) for atlas in atlases]}, True)
        return 0
    for atlas in atlases:
        print(atlas.folder)
        options.say(str(atlas))
    options.lead(args, None, ("what are its features?", ["serve", str(out)]))
    return 0


def _source(text: str) -> Corpus | Store:
    from gemscope.activations.store import Store, is_store

    return Store(text) if is_store(text) else options.corpus_of(text)


def _told(atlas: Any) -> dict[str, Any]:
    manifest = atlas.manifest
    return {
        "folder": str(atlas.folder),
        "model": manifest.model,
        "sae": manifest.sae,
        "features": len(atlas),
        "tokens": manifest.tokens,
        "rows": manifest.rows,
    }
