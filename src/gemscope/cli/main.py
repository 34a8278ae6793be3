"""The shell: `gemscope COMMAND ...`. Parses, calls, and turns a user's mistake into one line and exit code 1, and
signals into an orderly end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType

from gemscope import __version__
from gemscope.cli import (
    atlas,
    compare,
    completion,
    describe,
    exchange,
    explain,
    features,
    find,
    learn,
    lists,
    measure,
    publish,
    read,
    relatives,
    scope,
    serve,
    steer,
)
from gemscope.disk import is_full
from gemscope.errors import Awaited, GemscopeError


def parser() -> argparse.ArgumentParser:
    """Every command and option; loads neither torch nor transformers."""
    top = argparse.ArgumentParser(
        prog="gemscope",
        description="A microscope for language models: which features of a sparse autoencoder (SAE) fire where.",
        epilog='Start with: gemscope look "Would you be able to travel through time using a wormhole?"',
    )
    top.add_argument("--version", action="version", version=f"gemscope {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (
        read,
        steer,
        find,
        learn,
        scope,
        features,
        compare,
        lists,
        explain,
        measure,
        relatives,
        describe,
        serve,
        atlas,
        exchange,
        publish,
    ):
        group.add_to(commands)
    completion.add_to(commands, of=top)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for a mistake of the user's, 2 for wrong usage, 128 and the number
    of the signal that ended it.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that has no UTF-8 shows escapes for what it has no sign for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _signals_end_it():
            args = parser().parse_args(argv)
            args.argv = sys.argv[1:] if argv is None else [*argv]
            code: int = args.run(args)
            sys.stdout.flush()
            return code
    except Awaited as told:
        print(told)
        return 0
    except GemscopeError as error:
        print(f"gemscope: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gemscope: interrupted", file=sys.stderr)
        return 130
    except _Ended as ended:
        print(f"gemscope: ended by {ended.by.name}", file=sys.stderr)
        return 128 + ended.by
    except BrokenPipeError:
        _forget_output()  # the reader (head, less) has gone
        return 0
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        print(f"gemscope: out of memory: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return 1
    except OSError as error:  # the disk's or the network's word, where nobody had a better one
        what = f"{error.filename}: " if error.filename else ""
        said = "no room left on the disk: free some" if is_full(error) else error.strerror or error
        print(f"gemscope: {what}{said}", file=sys.stderr)
        if not error.filename:  # it may be the output that found no room
            _forget_output()
        return 1


def _is_memory(error: Exception) -> bool:
    """Whether there was no room in memory, where nobody had a better word for it."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from gemscope.activations.memory import lacking

    return lacking(error) is not None


def _forget_output() -> None:
    """What is left to be written must not raise again at exit."""
    with suppress(OSError, ValueError):  # no file at all, where somebody has put something else in its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Ended(BaseException):
    """A signal asked for the end; not an Exception, so that nobody on the way out takes it for a fault."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)
        self.by = by


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """What would end the process on the spot (`kill`, a terminal that closes) ends it as Ctrl-C does: what is half done
    is put away. The second time it ends on the spot.
    """
    main = threading.current_thread() is threading.main_thread()
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)] if main else []
    caught = [one for one in map(signal.Signals.__getitem__, names) if signal.getsignal(one) is signal.SIG_DFL]
    came: list[_Ended] = []

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        came.append(_Ended(signal.Signals(number)))
        raise came[0]

    for one in caught:  # one that is ignored, as under nohup, stays so
        signal.signal(one, end)
    try:
        yield
    except Exception:
        if came:  # it came within a library that makes an error of its own of what is raised there
            raise came[0] from None
        raise
    finally:
        for one in caught:
            signal.signal(one, signal.SIG_DFL)
