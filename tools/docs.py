"""The parts of docs/ that come out of running the thing (`make docs`).

Notebooks: the text and the code of examples/, and what they show when Jupyter runs them. docs/look.svg: the demo's output. The
tables of speed in README and docs/comparison.md: what benchmarks/results/ says. docs/house.svg: the folders, and what imports
what. These alone with `tools/docs.py --figures`.
"""

import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import house

import gemscope as gs

EXAMPLES = {
    Path("examples/tutorial.py"): Path("docs/tutorial.ipynb"),
    Path("examples/own_sae.py"): Path("docs/own-sae.ipynb"),
    Path("examples/meaning.py"): Path("docs/meaning.ipynb"),
}
"""Each is the source of a notebook."""
PICTURE = Path("docs/look.svg")
HOUSE = Path("docs/house.svg")
README = Path("README.md")
COMPARISON = Path("docs/comparison.md")
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


def notebook(source: str) -> Any:
    """The notebook of an example, before it is run. It is the same each time."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    made = new_notebook(metadata={"language_info": {"name": "python"}})
    for number, (kind, text) in enumerate(cells(source)):
        new = new_markdown_cell if kind == "text" else new_code_cell
        made.cells.append(new(text, id=f"cell-{number}"))
    return made


def executed(source: str) -> Any:
    """The same as Jupyter has run it, in an empty folder: what each cell shows stands below it. What a cell raises is raised."""
    from nbclient import NotebookClient

    made = notebook(source)
    with tempfile.TemporaryDirectory() as scratch:
        where = {"metadata": {"path": scratch}}
        NotebookClient(made, timeout=900, kernel_name="python3", record_timing=False, resources=where).execute()
    made.metadata = {"language_info": {"name": "python"}}  # not which Python ran it
    for cell in made.cells:  # nor what libraries say of their surroundings
        if "outputs" in cell:
            cell.outputs = joined([one for one in cell.outputs if one.get("name") != "stderr"])
    return made


def joined(outputs: list[Any]) -> list[Any]:
    """What a cell prints as one text, in however many pieces a slow machine let it come."""
    found: list[Any] = []
    for one in outputs:
        if found and one.output_type == found[-1].output_type == "stream" and one.name == found[-1].name:
            found[-1].text += one.text
        else:
            found.append(one)
    return found


def picture() -> str:
    """What `make demo` shows, as SVG; the font is the reader's own, so that nothing is fetched."""
    from rich.console import Console

    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(gs.look(gs.load_model(), gs.load_sae("smollm2"), PROMPT, k=3))
    svg = console.export_svg(title=f'gemscope look "{PROMPT}"')
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL).replace(
        "Fira Code, monospace", "ui-monospace, monospace"
    )


def figures(page: Path) -> str:
    """A page with its tables of figures made anew."""
    text = page.read_text()
    for name, table in {"encode": encoding, "train": training, "measured": measured}.items():
        between = re.compile(f"(<!-- {name}: .*? -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = between.sub(lambda found, table=table: found[1] + table() + found[2], text)
    return text


def measured() -> str:
    """A row for each thing that was measured beside another tool: what, both, when, on what."""
    lines = ["| what | gemscope | the other | measured |", "| --- | --- | --- | --- |"]

    def line(what: str, ours: str, theirs: str, name: str, command: str) -> None:
        result = json.loads((RESULTS / f"{name}.json").read_text())
        threads = result.get("threads") or result["machine"].get("threads")
        threads = threads[0] if isinstance(threads, list) else threads
        on = f"{result['date']}, {threads} thread{'s' if threads != 1 else ''}, `{command}`"
        lines.append(f"| {what} | {ours} | {theirs} | {on} |")

    start = {row["key"]: row for row in rows("startup")}
    both = {key: [row[tool] and row[tool]["median"] for tool in ("gemscope", "saelens")] for key, row in start.items()}
    bare = start["warm_plain_hook"]["saelens"]["median"]

    def of_startup(what: str, key: str, form: str, more: str = "") -> None:
        ours, theirs = both[key]
        line(what, form.format(ours), f"SAELens {form.format(theirs)}{more}", "startup", "bench-startup")

    of_startup("`import`, a fresh Python", "import", "{:.2f} s")
    of_startup("process start to the first table of a prompt", "first_table", "{:.1f} s")
    of_startup("prompt to table, once loaded", "warm", "{:.0f} ms", f" on its bridge, {bare:.0f} ms with a bare hook")
    of_startup("installed, without torch", "installed_mb_without_torch", "{:,.0f} MB")
    encode = {(row["op"], row["d_sae"], row["impl"]): row for row in rows("encode")}
    for op, d_sae in (("encode", 16_384), ("forward", 16_384), ("forward", 65_536)):
        ours, alone, theirs = (encode[op, d_sae, one] for one in ("gemscope", "gemscope-torch", "saelens"))
        what = f"{op}, 2,048 tokens × 2304, {d_sae:,} features, L0 70"
        own = f"{ours['median_s'] * 1e3:,.0f} ms; torch alone {alone['median_s'] * 1e3:,.0f} ms"
        line(what, own, f"SAELens {theirs['median_s'] * 1e3:,.0f} ms", "encode", "bench-encode")
    step = {(row["d_sae"], row["impl"]): row for row in rows("train") if row["op"] == "step"}
    ours, dense, theirs = (step[16_384, one]["median_s"] * 1e3 for one in ("gemscope", "dense", "saelens"))
    own = f"{ours:,.0f} ms"
    line(
        "a training step, 2304 × 16,384, batch 2,048",
        own,
        f"SAELens {theirs:,.0f} ms; a tuned dense step {dense:,.0f} ms",
        "train",
        "bench-train",
    )
    real = {row["impl"]: row for row in rows("train_real")}
    whole = [
        f"{real[one]['wall_s']:.0f} s, FVU {real[one]['held_out_fvu']:.3f}, delta loss {real[one]['delta_loss']:+.3f}"
        for one in ("gemscope", "saelens")
    ]
    line(
        "a run of a million rows on the bundled model, the best of some settings each, L0 50",
        whole[0],
        f"SAELens {whole[1]}",
        "train_real",
        "bench-train-real",
    )
    atlas = {row["impl"]: row for row in rows("describe")}
    made = [f"{atlas[one]['whole_s']:,.0f} s, {atlas[one]['peak_mb']:,.0f} MB" for one in ("gemscope", "sae-dashboard")]
    line(
        "pages for 24,576 features from 16,384 tokens (theirs from 384 of them, scaled up)",
        made[0],
        f"sae-dashboard {made[1]}",
        "describe",
        "bench-describe",
    )
    edits = {(row["rows"], row["impl"]): row["tokens_per_s"] for row in rows("edits")}
    for n in (1, 8):
        line(
            f"generation with one feature clamped, {n} row{'s' if n > 1 else ''}",
            f"{edits[n, 'clamp']:.0f} tokens a second",
            f"SAELens {edits[n, 'saelens clamp']:.0f}; a plain hook on its bridge {edits[n, 'saelens hook']:.0f}",
            "edits",
            "bench-edits",
        )
    found = {}
    for row in rows("toy"):
        found.setdefault((row["impl"], row["variant"], row["arch"]), []).append(row["mmcs"])
    mean = {key: f"{sum(values) / len(values):.3f}".removeprefix("0") for key, values in found.items()}
    named = ("jumprelu", "batchtopk", "topk", "gated", "standard")
    ours, theirs = (", ".join(mean[one, "uniform", arch] for arch in named) for one in ("gemscope", "saelens"))
    line(f"known directions found again, MMCS: {', '.join(named)}", ours, f"SAELens {theirs}", "toy", "bench-toy")
    return "\n".join(lines)


def rows(name: str) -> list[dict]:
    """A benchmark's rows, as saved."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def encoding() -> str:
    """Times and memory of gemscope's two kernels beside SAELens, and with less of what the processor can do."""
    found = {(row["op"], row["d_sae"], row["impl"]): row for row in rows("encode")}
    lines = [
        "| 2,048 tokens × 2304, L0 70 | SAELens | torch alone | native kernels | memory: SAELens, torch, native |",
        "| --- | --- | --- | --- | --- |",
    ]
    for d_sae in (16_384, 65_536):
        for op in ("encode", "decode", "forward"):
            peer, plain, native = (found[op, d_sae, impl] for impl in ("saelens", "gemscope-torch", "gemscope"))
            memory = ", ".join(f"{row['peak_mb']:,.0f}" for row in (peer, plain, native))
            lines.append(f"| {op}, {d_sae:,} features | {ms(peer)} | {ms(plain)} | {ms(native)} | {memory} MB |")
        for less, name in (("without bfloat16", "encode-avx512_core"), ("on AVX2 alone", "encode-avx2")):
            limited = {(row["op"], row["d_sae"], row["impl"]): row for row in rows(name)}
            peer, plain, native = (limited["forward", d_sae, one] for one in ("saelens", "gemscope-torch", "gemscope"))
            lines.append(f"| forward, {d_sae:,}, {less} | {ms(peer)} | {ms(plain)} | {ms(native)} | |")
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
    for page_of_figures in (README, COMPARISON):
        written(page_of_figures, figures(page_of_figures))
    written(HOUSE, house.picture())
    if "--figures" in sys.argv:
        return
    import nbformat

    for source, to in EXAMPLES.items():
        written(to, nbformat.writes(executed(source.read_text())) + "\n")
    written(PICTURE, picture())


if __name__ == "__main__":
    main()
