"""The command that gives an SAE to others: push."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from gemscope.cli import options


def add_to(commands: Any) -> None:
    """push."""
    push = commands.add_parser(
        "push",
        help="publish an SAE of one's own on the Hugging Face Hub, with its card and its atlas",
        usage="gemscope push FOLDER USER/NAME [options]",
        description="Sends weights (in SAELens's format), card and atlas to a repository, in one commit. All is looked "
        "at before anything is sent; what is none of these files stays here, and is named. Where it breaks off, "
        "running it again goes on.",
    )
    push.add_argument(
        "folder", metavar="FOLDER", help="a run of `gemscope train`, an SAE in SAELens's format, or a scope"
    )
    push.add_argument("repo", metavar="USER/NAME", help="the repository, which is made where it is not")
    push.add_argument("--atlas", metavar="ATLAS", help="the SAE's atlas (default: FOLDER/atlas, where there is one)")
    push.add_argument(
        "--as", dest="place", metavar="NAME", help="the SAE's folder in the repository (default: its site, as 15.res)"
    )
    push.add_argument("--private", action="store_true", help="a repository that is made is for its owner's eyes alone")
    push.add_argument("--revision", metavar="BRANCH", help="the branch, which is made where it is not (default: main)")
    push.add_argument("--message", metavar="TEXT", help="what the commit says")
    push.add_argument("--dry-run", action="store_true", help="say what would go, in bytes; ask nobody, send nothing")
    push.add_argument("--token", help="Hugging Face token that may write (else the one `hf auth login` stored)")
    options.add_json(push)
    push.set_defaults(run=_push, parser=push)


def _push(args: argparse.Namespace) -> int:
    from gemscope.reports.push import push

    if not sys.stderr.isatty():  # the Hub's client draws its bars by itself, into files too
        from huggingface_hub.utils import disable_progress_bars

        with warnings.catch_warnings():  # where the environment says it already
            warnings.simplefilter("ignore")
            disable_progress_bars()
    done = push(
        args.folder,
        args.repo,
        atlas=args.atlas,
        place=args.place,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
        token=args.token,
        message=args.message,
    )
    options.show(done, args.json)
    if done.commit is not None:
        words = ["look", *([done.model] if done.model else []), done.addresses[0], "Some text."]
        options.lead(args, None, ("what do others see?", words))
    return 0
