"""The shell: `gemscope COMMAND ...`. Parses, calls, and turns a user's mistake into one line and exit code 1."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gemscope import __version__
from gemscope.cli import atlas, describe, exchange, find, learn, measure, read, serve, steer
from gemscope.errors import GemscopeError


def parser() -> argparse.ArgumentParser:
    """Every command and option; loads neither torch nor transformers."""
    top = argparse.ArgumentParser(
        prog="gemscope",
        description="A microscope for language models: which features of a sparse autoencoder (SAE) fire where.",
        epilog='Start with: gemscope look "Would you be able to travel through time using a wormhole?"',
    )
    top.add_argument("--version", action="version", version=f"gemscope {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (read, steer, find, learn, measure, describe, serve, atlas, exchange):
        group.add_to(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for a mistake of the user's, 2 for wrong usage."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except GemscopeError as error:
        print(f"gemscope: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gemscope: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; what is left to flush must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # the disk's or the network's word, where nobody had a better one
        what = f"{error.filename}: " if error.filename else ""
        print(f"gemscope: {what}{error.strerror or error}", file=sys.stderr)
        return 1
