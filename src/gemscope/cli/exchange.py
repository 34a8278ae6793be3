"""Commands that carry atlases over to other formats and back: export, import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas


def add_to(commands: Any) -> None:
    """export, import."""
    from gemscope.atlas.exchange.verbs import EXPORTS, IMPORTS

    out = commands.add_parser(
        "export",
        help="an atlas as HTML, a static site, CSV, Parquet, Neuronpedia's or Anthropic's files",
        usage="gemscope export ATLAS --format FORMAT -o OUT [--features 1,5,9]",
        description="Writes all features of an atlas, or some, in another format.",
        epilog="Formats: " + "; ".join(f"{name}: {what}" for name, (_, _, what) in EXPORTS.items()) + ".",
    )
    out.add_argument("atlas", metavar="ATLAS", help="the atlas's folder")
    out.add_argument("--format", required=True, choices=EXPORTS, metavar="FORMAT", help=", ".join(EXPORTS))
    out.add_argument("-o", "--output", required=True, metavar="OUT", help="the file or folder to write")
    out.add_argument(
        "--features", type=_features, metavar="LIST", help="numbers and ranges, such as 1,5,9 or 0-99 (default all)"
    )
    out.set_defaults(run=_export, parser=out)

    taken = commands.add_parser(
        "import",
        help="an atlas from Neuronpedia's, Anthropic's or Gemma Scope 2's files, without running a model",
        usage="gemscope import FORMAT PATH -o ATLAS [options]",
        description="Makes an atlas of what others have computed, and says what they left out.",
        epilog="Formats: " + "; ".join(f"{name}: {what}" for name, (_, _, what) in IMPORTS.items()) + ".",
    )
    taken.add_argument("format", choices=list(IMPORTS), metavar="FORMAT", help=", ".join(IMPORTS))
    taken.add_argument("path", metavar="PATH", help="the folder or file to read")
    taken.add_argument(
        "-o", "--output", required=True, metavar="ATLAS", help="the atlas's folder, which must not exist"
    )
    taken.add_argument(
        "--model",
        metavar="NAME",
        help="the model's Hugging Face id (gemma-scope-2: its tokenizer says what ids stand for)",
    )
    taken.add_argument("--sae", metavar="ADDRESS", help="gemma-scope-2: address of the SAE that the file lies beside")
    taken.add_argument("--d-sae", type=int, metavar="N", help="features of the SAE, where the files do not say")
    taken.add_argument("--layer", type=int, help="anthropic: which layer of a packed folder")
    taken.add_argument("--whole-corpus", action="store_true", help="gemma-scope-2: keep rows that no example lies in")
    options.add_json(taken)
    taken.set_defaults(run=_import, parser=taken)


_MOST = 1 << 24
"""Features that a range may name: more than any SAE has."""


def _features(text: str) -> list[int]:
    """`1,5,9-12` as numbers."""
    out: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            some = range(int(low), int(high) + 1) if dash else range(int(low), int(low) + 1)
            if not 0 < len(some) <= _MOST:
                raise ValueError
            out += some
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of features: expected such as 1,5,9 or 0-99") from None
    return out


def _export(args: argparse.Namespace) -> int:
    from gemscope.atlas.exchange.verbs import export

    export(args.atlas, args.output, format=args.format, features=args.features)
    print(f"wrote {args.output}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from gemscope.atlas.exchange.verbs import import_atlas

    given: dict[str, Any] = {}
    if args.format == "gemma-scope-2":
        if args.sae is None:
            args.parser.error("gemma-scope-2 needs --sae: the address of the SAE that the file lies beside")
        given = {"sae": args.sae, "whole_corpus": args.whole_corpus}
    else:
        given = {"model": args.model, "d_sae": args.d_sae}
    if args.format == "anthropic":
        given["layer"] = args.layer
    with bars() as progress:
        if args.format == "gemma-scope-2" and args.model:
            from gemscope.activations.load import load_tokenizer

            given["model"] = load_tokenizer(args.model, progress=progress)
        with import_atlas(args.format, args.path, Path(args.output), progress=progress, **given) as atlas:
            found = _told(atlas)
    if args.json:
        options.show(found, True)
        return 0
    options.say(f"wrote {args.output}: {found['features']:,} features of {found['model']}, {found['sae']}")
    for name in ("counts", "missing"):
        if found[name]:
            options.say(f"{name}: {found[name]}")
    for name, number in found["put_right"].items():
        options.say(f"put right: {number:,} {name}")
    options.lead(args, None, ("what are its features?", ["serve", str(args.output)]))
    return 0


def _told(atlas: Atlas) -> dict[str, Any]:
    manifest = atlas.manifest
    return {
        "features": len(atlas),
        "model": manifest.model,
        "sae": manifest.sae,
        "site": manifest.site,
        "counts": manifest.metadata.get("counts", ""),
        "missing": manifest.metadata.get("missing", ""),
        "put_right": dict(manifest.metadata.get("put_right", {})),
    }
