"""Python in processes of their own that begin at once: forks of one that has imported what takes longest, torch and what
of it transformers takes along. Whatever looks at the environment when it is imported, such as the Hub's client, is
imported by each for itself. Run as a program this file is the one that is forked.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LONG = ("numpy", "torch", "torch.distributed.tensor", "torch._dynamo", "scipy.optimize", "safetensors.torch")


class Done(NamedTuple):
    """A process that has ended."""

    stdout: str
    stderr: str
    code: int

    def json(self) -> Any:
        """What its last line says. Raises AssertionError with its stderr when it failed."""
        assert self.code == 0, f"the process ended with {self.code}:\n{self.stderr}"
        return json.loads(self.stdout.splitlines()[-1])


def python(*arguments: str, env: Mapping[str, str], timeout: int = 600) -> Done:
    """What comes of `python -c CODE ...` or `python -m MODULE ...`; one that takes longer is ended by SIGALRM."""
    if sys.platform != "linux":  # elsewhere libraries do not bear to be forked
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout, check=False)
        return Done(done.stdout, done.stderr, done.returncode)
    with tempfile.TemporaryDirectory() as folder:
        said = [f"{folder}/out", f"{folder}/err"]
        asked = {"arguments": arguments, "env": dict(env), "said": said, "timeout": timeout}
        talk, listen = _one().stdin, _one().stdout
        assert talk is not None
        assert listen is not None
        talk.write(json.dumps(asked) + "\n")
        talk.flush()
        code = int(listen.readline())
        return Done(*(Path(path).read_text(encoding="utf-8") for path in said), code)


@cache
def _one() -> subprocess.Popen[str]:
    """The one that is forked: it ends with this process."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def _forked() -> None:
    for name in LONG:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # processes with several do not fork
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(**asked)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(arguments: list[str], env: dict[str, str], said: list[str], timeout: int) -> None:
    """Never returns."""
    signal.alarm(timeout)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(["/dev/null", *said]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    kind, what, *rest = arguments
    sys.argv, sys.path[0], code = [kind, *rest], "", 1
    try:
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _forked()
