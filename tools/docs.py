"""The parts of docs/ that come out of running the thing (`make docs`).

docs/tutorial.md: examples/tutorial.py's text, its code, and what the code prints. docs/look.svg: the demo's output.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import gemscope as gs

EXAMPLE = Path("examples/tutorial.py")
PAGE = Path("docs/tutorial.md")
PICTURE = Path("docs/look.svg")
PROMPT = "Would you be able to travel through time using a wormhole?"


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of every `# %%` cell."""
    out = []
    for block in source.split("# %%")[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            out.append(
                ("text", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
            )
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


def picture() -> str:
    """What `make demo` shows, as SVG; the font is the reader's own, so that nothing is fetched."""
    from rich.console import Console

    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(gs.look(gs.load_model(), gs.load_sae("smollm2"), PROMPT))
    svg = console.export_svg(title=f'gemscope look "{PROMPT}"')
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL).replace(
        "Fira Code, monospace", "ui-monospace, monospace"
    )


def written(path: Path, text: str) -> None:
    """Beside its place, then moved there."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    os.replace(aside, path)


def main() -> None:
    sys.argv = [str(EXAMPLE)]
    source, to = EXAMPLE.read_text(), PAGE.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        text = page(source)
    written(to, text)
    written(PICTURE, picture())


if __name__ == "__main__":
    main()
