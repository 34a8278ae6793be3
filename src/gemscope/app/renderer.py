"""A process that makes features' pages for a server (`renderers.py`): lines with what is wanted in, pages out."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path

from gemscope.app.feature import made
from gemscope.app.renderers import SIZE, Wanted
from gemscope.app.shelf import shelf
from gemscope.checked import json_of
from gemscope.pages.render import warm


def main() -> None:
    """Until nothing more comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is the server's, which ends this one
    served = shelf(map(Path, sys.argv[1:]), off="")
    warm()
    gc.freeze()  # what is there now stays: looking through it again would take 20 ms from a reader
    for line in sys.stdin.buffer:
        try:
            page = made(served, json_of(line, Wanted, where="what is wanted")).encode()
        except Exception:  # whatever it is: the server tries by itself, and says what is wrong
            page = b""
        sys.stdout.buffer.write(len(page).to_bytes(SIZE) + page)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
