"""Ranks of one group, as processes of this machine: forks that find each other by a file, so that no port is asked for.
Run as a program this is the parent of the ranks, and each does what a function of a module says.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemscope.errors import GemscopeError
from gemscope.training.group import ALONE, joined
from gemscope.world import World
from processes import Done, python

PATIENCE = 120.0
"""Seconds that a rank waits for another: the machine may be busy."""


def together(size: int, what: str, folder: Path, *given: Any, timeout: float = PATIENCE) -> Done:
    """`what`, as "module:function", is called with the group, the folder and what else is given, by each rank. Ends with
    the first exit code that is not 0, and what all ranks have said.
    """
    root = Path(__file__).parent
    paths = [str(root), str(root.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    asked = json.dumps({"size": size, "what": what, "folder": str(folder), "given": given, "timeout": timeout})
    code = f"import sys; sys.path[:0] = {paths[:2]}; import ranks; ranks.main()"
    return python("-c", code, asked, env=env)


def main() -> None:
    """What takes long is imported once, for all ranks."""
    asked = json.loads(sys.argv[-1])
    module, name = asked.pop("what").split(":")
    call = getattr(importlib.import_module(module), name)
    begun = []
    for rank in range(asked["size"]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _be(rank, call, **asked)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        begun.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in begun]
    sys.stdout.write(json.dumps(codes) + "\n")
    sys.exit(next((abs(code) for code in codes if code), 0))


def _be(rank: int, call: Callable[..., None], *, size: int, folder: str, given: list[Any], timeout: float) -> int:
    group = ALONE
    try:
        with joined(World(rank, size), timeout=timeout, address=f"file://{folder}/links") as group:
            call(group, Path(folder), *given)
    except GemscopeError as error:
        if group.speaks(error):
            sys.stderr.write(f"said: {group.named(error)}\n")
        sys.stderr.write(f"raised: {error}\n")
        return 3
    return 0
