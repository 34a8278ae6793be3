"""Writes docs/tutorial.md from examples/tutorial.py: its text, its code, and what the code prints (`make docs`)."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

EXAMPLE = Path("examples/tutorial.py")
PAGE = Path("docs/tutorial.md")


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of every `# %%` cell."""
    out = []
    for block in source.split("# %%")[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            out.append(("text", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())))
        else:
            out.append(("code", body.strip()))
    return out


def page(source: str, run: bool = True) -> str:
    """The page; with `run` each code cell is followed by what it printed."""
    parts = ["<!-- made from examples/tutorial.py by `make docs`; edit that file -->"]
    space: dict[str, object] = {"__name__": "tutorial"}
    for kind, text in cells(source):
        if kind == "text":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        if run:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, str(EXAMPLE), "exec"), space)
            if out.getvalue().strip():
                printed = "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    sys.argv = [str(EXAMPLE)]
    source, to = EXAMPLE.read_text(), PAGE.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        text = page(source)
    aside = to.with_name(f".{to.name}")
    aside.write_text(text)
    os.replace(aside, to)


if __name__ == "__main__":
    main()
