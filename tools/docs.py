"""The parts of docs/ that come out of running the thing (`make docs`).

docs/tutorial.md: examples/tutorial.py's text, its code, and what the code prints. docs/look.svg: the demo's output. The
README's tables of speed: what benchmarks/results/ says. docs/house.svg: the folders, and what imports what. These two alone
with `tools/docs.py --figures`.
"""

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import house

import gemscope as gs

EXAMPLE = Path("examples/tutorial.py")
PAGE = Path("docs/tutorial.md")
PICTURE = Path("docs/look.svg")
HOUSE = Path("docs/house.svg")
README = Path("README.md")
RESULTS = Path("benchmarks/results")
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
    console.print(gs.look(gs.load_model(), gs.load_sae("smollm2"), PROMPT, k=3))
    svg = console.export_svg(title=f'gemscope look "{PROMPT}"')
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL).replace(
        "Fira Code, monospace", "ui-monospace, monospace"
    )


def figures() -> str:
    """The README with its tables of speed made anew."""
    text = README.read_text()
    for name, table in {"encode": encoding(), "train": training()}.items():
        between = re.compile(f"(<!-- {name}: .*? -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = between.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


def rows(name: str) -> list[dict]:
    """A benchmark's rows, as saved."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def encoding() -> str:
    """Times and memory of gemscope's two kernels beside SAELens, and with the processor's bfloat16 switched off."""
    found = {(row["op"], row["d_sae"], row["impl"]): row for row in rows("encode")}
    limited = {(row["op"], row["d_sae"], row["impl"]): row for row in rows("encode-avx512_core")}
    lines = [
        "| 2,048 tokens × 2304, L0 70 | SAELens | torch alone | native kernels | memory: SAELens, torch, native |",
        "| --- | --- | --- | --- | --- |",
    ]
    for d_sae in (16_384, 65_536):
        for op in ("encode", "decode", "forward"):
            peer, plain, native = (found[op, d_sae, impl] for impl in ("saelens", "gemscope-torch", "gemscope"))
            memory = ", ".join(f"{row['peak_mb']:,.0f}" for row in (peer, plain, native))
            lines.append(f"| {op}, {d_sae:,} features | {ms(peer)} | {ms(plain)} | {ms(native)} | {memory} MB |")
        peer, plain, native = (limited["forward", d_sae, impl] for impl in ("saelens", "gemscope-torch", "gemscope"))
        lines.append(f"| forward, {d_sae:,}, without bfloat16 | {ms(peer)} | {ms(plain)} | {ms(native)} | |")
    return "\n".join(lines)


def training() -> str:
    """One step beside SAELens's trainer and a tuned dense step."""
    found = {(row["d_sae"], row["impl"]): row for row in rows("train") if row["op"] == "step"}
    lines = [
        "| one training step, L0 70 | SAELens | dense, tuned | torch alone | native kernels | memory: SAELens, native |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size, d_sae in (("2304 × 16,384, batch 2,048", 16_384), ("576 × 4,608, batch 4,096", 4_608)):
        peer, dense, plain, native = (found[d_sae, i] for i in ("saelens", "dense", "gemscope-torch", "gemscope"))
        memory = f"{peer['transient_mb']:,.0f}, {native['transient_mb']:,.0f} MB"
        lines.append(f"| {size} | {ms(peer)} | {ms(dense)} | {ms(plain)} | {ms(native)} | {memory} |")
    return "\n".join(lines)


def ms(row: dict) -> str:
    """A median, and how many times as fast as SAELens."""
    times = row.get("ratio_vs_saelens") or 1
    return f"{row['median_s'] * 1e3:,.0f} ms" + (f" ({times:.1f} ×)" if row["impl"] != "saelens" else "")


def written(path: Path, text: str) -> None:
    """Beside its place, then moved there."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    os.replace(aside, path)


def main() -> None:
    written(README, figures())
    written(HOUSE, house.picture())
    if "--figures" in sys.argv:
        return
    sys.argv = [str(EXAMPLE)]
    source, to = EXAMPLE.read_text(), PAGE.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        text = page(source)
    written(to, text)
    written(PICTURE, picture())


if __name__ == "__main__":
    main()
