"""Commands that work on atlases that are there: atlas verify, atlas merge."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gemscope.cli import options
from gemscope.cli.bars import bars


def add_to(commands: Any) -> None:
    """atlas verify, atlas merge."""
    atlas = commands.add_parser("atlas", help="work on atlases: verify, merge").add_subparsers(
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
