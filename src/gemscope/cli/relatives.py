"""The command that follows features from site to site: relatives."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas
    from gemscope.features.sae import SAE
    from gemscope.progress import Progress

_KEPT = "relatives.unfinished"
"""In the folder of the first atlas, until all is done."""


def add_to(commands: Any) -> None:
    """relatives."""
    relatives = commands.add_parser(
        "relatives",
        help="the same features at other sites: where each begins, goes on and ends",
        usage="gemscope relatives ATLAS ATLAS [...] [options]\n       gemscope relatives SAE SAE [...] [options]",
        description="For each feature of each SAE its nearest ones among those of the next SAE and of the one before, "
        "in the model's order: by decoder directions, by firing on the same tokens, and by what the earlier one does "
        "to the later one on average. Beside ATLAS folders it is put into them, and stands on their pages. Stopped, it "
        "goes on when called again, where there is an atlas or -o.",
    )
    relatives.add_argument("words", nargs="+", metavar="ATLAS | SAE", help="two or more; `smollm2`: the bundled SAE")
    relatives.add_argument("--model", default=None, help="default: what the atlases name, else the bundled one")
    relatives.add_argument("--corpus", metavar="PATH", help="text that is read (default: the bundled sample)")
    relatives.add_argument("--tokens", type=int, default=100_000, help="that correlations are over (default 100000)")
    relatives.add_argument("--length", type=int, default=128, help="tokens of a row of text (default 128)")
    relatives.add_argument("--batch", type=int, default=16, help="rows per pass (default 16)")
    relatives.add_argument(
        "--effect-tokens", type=int, default=160, help="that mean Jacobians are over, about (default 160)"
    )
    relatives.add_argument("--features", metavar="NUMBERS", help="told one by one, parted by commas, as in 263,8029")
    relatives.add_argument("--of", metavar="SITE", help="whose features these are (default: the first SAE's)")
    relatives.add_argument("--keep", type=int, default=4, help="relatives kept by each figure (default 4)")
    relatives.add_argument("-k", type=int, default=12, help="pairs shown (default 12)")
    relatives.add_argument("-o", "--out", metavar="FILE", help="write every pair there, .csv or .json")
    options.add_json(relatives)
    options.add_model(relatives)
    options.add_sae(relatives)
    options.add_hub(relatives)
    relatives.set_defaults(run=_relatives, parser=relatives)


def _relatives(args: argparse.Namespace) -> int:
    import shutil

    from gemscope.atlas.describe.relatives import add_relatives
    from gemscope.errors import InputError
    from gemscope.reports.relatives import relatives

    if len(args.words) < 2:
        args.parser.error(f"{args.words[0]} alone: give two atlases or SAEs at least")
    if args.out and Path(args.out).suffix not in (".csv", ".json"):
        raise InputError(f"-o {args.out}: relatives are written as .csv or .json")
    features = [] if args.features is None else options.numbers("--features", args.features)
    with ExitStack() as stack, bars() as progress:
        atlases = [_atlas(word, stack) for word in args.words]
        there = [one for one in atlases if one is not None]
        model = options.model_of(args, args.model or _model(there), progress)
        saes = [_sae(args, word, atlas, progress, model) for word, atlas in zip(args.words, atlases, strict=True)]
        kept = _kept(args.out, there)
        found = relatives(
            model,
            saes,
            options.corpus_of(args.corpus),
            features=features,
            of=args.of,
            atlases=there,
            tokens=args.tokens,
            length=args.length,
            batch=args.batch,
            k=args.keep,
            shown=args.k,
            effect_tokens=args.effect_tokens,
            to=kept,
            progress=progress,
        )
        written = add_relatives(there, found.kin) if there else []
        if args.out:
            written.append(found.save(args.out))
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    options.show(found, args.json)
    if not args.json:
        for path in written:
            print(path)
        if there:
            folders = [str(one.folder) for one in there]
            options.lead(args, None, ("how do they stand on a feature's page?", ["serve", *folders]))
    return 0


def _atlas(word: str, stack: ExitStack) -> Atlas | None:
    """The atlas that a word names; None for an SAE."""
    from gemscope.atlas.reader import Atlas
    from gemscope.checked import existing

    folder = existing(word)
    if folder is None or not (folder / "atlas.sqlite").is_file():
        return None
    return stack.enter_context(Atlas(folder))


def _model(atlases: list[Atlas]) -> str:
    """What the atlases name: the bundled one by its short name, as it lies here."""
    from gemscope.activations.bundled import SMOLLM2

    name = atlases[0].manifest.model if atlases else SMOLLM2.model
    return options.DEFAULT if name == SMOLLM2.model else name


def _sae(args: argparse.Namespace, word: str, atlas: Atlas | None, progress: Progress, model: Any) -> SAE:
    from gemscope.reports.atlas_pair import opened

    return options.sae_of(args, word, progress, model) if atlas is None else opened(atlas.manifest)


def _kept(out: str | None, atlases: list[Atlas]) -> Path | None:
    """Where what was read is kept while it goes on."""
    if atlases:
        return atlases[0].folder / _KEPT
    return Path(f"{out}.unfinished") if out else None
