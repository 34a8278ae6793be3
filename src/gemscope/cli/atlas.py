"""Commands that work on atlases that are there: atlas verify, atlas merge, atlas effect, atlas output, atlas map."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gemscope.cli import options
from gemscope.cli.bars import bars


def add_to(commands: Any) -> None:
    """atlas verify, atlas merge, atlas effect, atlas output, atlas map."""
    atlas = commands.add_parser("atlas", help="work on atlases: verify, merge, effect, output, map").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    verify = atlas.add_parser("verify", help="look through a whole atlas for damage")
    verify.add_argument("folder", metavar="ATLAS")
    options.add_json(verify)
    verify.set_defaults(run=_verify, parser=verify)

    merge = atlas.add_parser(
        "merge",
        help="atlases of several texts as one, as if all had been read in one pass",
        description="Needs atlases of one SAE, made with the same settings, as `gemscope describe` left them.",
    )
    merge.add_argument("folders", nargs="+", metavar="ATLAS", help="in the order in which the texts belong")
    merge.add_argument("-o", "--out", required=True, metavar="ATLAS", help="must not exist")
    options.add_json(merge)
    merge.set_defaults(run=_merge, parser=merge)

    effect = atlas.add_parser(
        "effect",
        usage="gemscope atlas effect ATLAS [MODEL SAE [CORPUS]] [options]",
        help="put what features promote, measured over text, into an atlas that is there",
        description="Reads features by the effect of the site at which the SAE writes: one from a --file, the one "
        "beside the atlas, or one that is measured over CORPUS (default: the bundled sample). No other text is read.",
    )
    effect.add_argument("words", nargs="+", metavar="ATLAS [MODEL SAE [CORPUS]]")
    effect.add_argument("--file", metavar="FILE", help="an effect measured before (gemscope effect --file FILE)")
    effect.add_argument("--tokens", type=int, default=160, help="about how many are measured over (default 160)")
    effect.add_argument("-k", type=int, default=10, help="tokens kept each way for a feature (default 10)")
    options.add_json(effect)
    options.add_model(effect)
    options.add_sae(effect)
    options.add_hub(effect)
    effect.set_defaults(run=_effect, parser=effect)

    output = atlas.add_parser(
        "output",
        usage="gemscope atlas output ATLAS [MODEL SAE] [options]",
        help="measure whether features write what they promote, and keep it with an atlas",
        description="Turns features up on neutral prompts and keeps with the atlas how likely what they promote and "
        "what their examples fire on comes next: by default those of which the atlas tells in words what they "
        "promote. Those that are known already stay; stopped, it goes on when called again.",
    )
    output.add_argument("words", nargs="+", metavar="ATLAS [MODEL SAE]")
    output.add_argument("--features", metavar="NUMBERS", help="these alone, parted by commas, as in 263,8029")
    options.add_json(output)
    options.add_model(output)
    options.add_sae(output)
    options.add_hub(output)
    output.set_defaults(run=_output, parser=output)

    placed = atlas.add_parser(
        "map",
        help="place an atlas's features on a map, by the directions of its SAE",
        description="For an atlas that was described without scikit-learn, or before there were maps.",
    )
    placed.add_argument("folder", metavar="ATLAS")
    placed.add_argument("--sae", help="where the SAE lies, if elsewhere than the atlas says")
    options.add_json(placed)
    placed.set_defaults(run=_map, parser=placed)


def _effect(args: argparse.Namespace) -> int:
    from gemscope.atlas.describe.effects import add_effect
    from gemscope.atlas.files.whole import EFFECT
    from gemscope.checked import existing
    from gemscope.features.effect import Effect, effect
    from gemscope.features.fit import require_fit, sites_of

    folder, *rest = args.words
    if len(rest) not in (0, 2, 3):
        args.parser.error(f"{len(rest)} arguments behind the atlas: MODEL and SAE go together, then a CORPUS")
    name, address, *texts = rest or (options.DEFAULT, options.DEFAULT)
    beside = existing(f"{folder}/{EFFECT}")
    with bars() as progress:
        kept = Effect.load(args.file or str(beside)) if args.file or (beside and not texts) else None
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        require_fit(model, sae)
        if kept is None:
            kept = effect(model, sites_of(sae)[1], options.corpus_of(*texts), tokens=args.tokens, progress=progress)
        with add_effect(folder, model, sae, kept, k=args.k, progress=progress) as made:
            said, told = str(made), sum(one.promotes is not None for one in made.summaries(limit=len(made)))
    if args.json:
        options.show({"folder": folder, "effect": kept.to_dict(), "told": told}, True)
        return 0
    print(folder)
    options.say(said)
    options.say(f"what they promote is told in words of {told:,} features")
    options.lead(args, None, ("which features promote a token?", ["search", "--promotes", "money", "--atlas", folder]))
    return 0


def _output(args: argparse.Namespace) -> int:
    from gemscope.atlas.reader import Atlas
    from gemscope.reports.output_scores import add_output_scores

    folder, *rest = args.words
    if len(rest) not in (0, 2):
        args.parser.error(f"{len(rest)} arguments behind the atlas: MODEL and SAE go together")
    name, address = rest or (options.DEFAULT, options.DEFAULT)
    features = None if args.features is None else options.numbers("--features", args.features)
    with bars() as progress, Atlas(folder) as atlas:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        measured = add_output_scores(atlas, model, sae, features=features, progress=progress)
        known = atlas.outputs()
    write = sum(one.writes is True for one in known.values())
    if args.json:
        options.show({"folder": folder, "measured": measured, "known": len(known), "write": write}, True)
        return 0
    print(folder)
    options.say(f"{measured:,} measured now; of {len(known):,} that are known {write:,} clearly write what they read")
    options.lead(args, None, ("does one write what it reads?", ["serve", folder]))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from gemscope.atlas.verify import verify

    problems = verify(args.folder)
    if args.json:
        options.show({"folder": args.folder, "sound": not problems, "problems": problems}, True)
    elif problems:
        print("\n".join(problems), file=sys.stderr)
    else:
        print(f"{args.folder} is sound")
    return 1 if problems else 0


def _merge(args: argparse.Namespace) -> int:
    from gemscope.atlas.describe.merge import merge

    with bars() as progress:
        made = merge(args.folders, to=args.out, progress=progress)
    if args.json:
        options.show({"folder": args.out, "features": len(made), "tokens": made.manifest.tokens}, True)
        return 0
    print(args.out)
    options.say(str(made))
    options.lead(args, None, ("what are its features?", ["serve", str(args.out)]))
    return 0


def _map(args: argparse.Namespace) -> int:
    from gemscope.atlas.describe.mapping import add_map
    from gemscope.atlas.reader import Atlas
    from gemscope.features.load import load_sae

    with Atlas(args.folder) as atlas, bars() as progress:
        sae = load_sae(args.sae or atlas.manifest.sae, site=atlas.manifest.site or None)
        made = add_map(atlas, sae, progress=progress)
    if args.json:
        options.show({"folder": args.folder, "method": made.method, "kept": made.kept}, True)
        return 0
    print(args.folder)
    options.say(f"{made.method}; of the ten features nearest to one, {made.kept:.1%} are among its fifty nearest there")
    options.lead(args, None, ("how does it look?", ["serve", args.folder]))
    return 0
