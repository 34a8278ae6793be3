"""The picture of the house in docs/design.md: folders from left to right, the files in each, and who imports whom. All of
it is read off the code, so that it cannot say what is not so; `make docs` draws it anew.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

import gemscope

ROOT = Path(gemscope.__file__).parent
ORDER = ("text", "activations", "features", "edits", "training", "pages", "atlas", "reports", "scope", "app", "cli")
"""Each may import from those before it and from the ground floor, the files that lie in no folder."""
SAYS = {
    "text": "words to ids",
    "activations": "what a model computes",
    "features": "what of it is active",
    "edits": "changes to a running model",
    "training": "features learned anew",
    "pages": "values to HTML",
    "atlas": "the dictionary of features",
    "reports": "what is said of a prompt, an SAE, a corpus",
    "scope": "SAEs all over a model",
    "app": "from a browser",
    "cli": "from a shell",
}
HUES = (210, 190, 165, 140, 95, 50, 32, 12, 350, 310, 280)

COLUMN, GAP, LINE, TOP, LEFT = 132, 10, 16, 250, 14
"""Pixels: a column's width, between columns, a line of text, what the arcs have above the columns."""
OFTEN = (3, 12)
"""Imports from which an arc is drawn thicker."""


def imports(path: Path) -> set[str]:
    """The modules and names of ours that a file imports, at once, lazily or for the types alone: `features.sae.SAE`."""
    found = set()
    for node in (one for part in _body(path) for one in ast.walk(part)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.removeprefix("gemscope.") for name in found if name.startswith("gemscope.")}


def arcs() -> Counter[tuple[str, str]]:
    """(importing folder, imported folder): how many names."""
    every = ((path.relative_to(ROOT).parts[0], name.split(".")[0]) for path in files() for name in imports(path))
    return Counter((one, other) for one, other in every if one != other and {one, other} <= set(ORDER))


def files() -> Iterator[Path]:
    """Those in folders, but for the marks of packages, which hold at most a sentence."""
    for folder in ORDER:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if len(_body(path)) > 1)


def shelves(folder: str) -> list[tuple[str, list[str]]]:
    """(folder within, names of its files), the folder's own first."""
    inside: dict[str, list[str]] = {"": []}
    for path in files():
        if path.relative_to(ROOT).parts[0] == folder:
            place = path.relative_to(ROOT / folder)
            inside.setdefault(place.parent.as_posix().removeprefix("."), []).append(place.stem)
    return list(inside.items())


def picture() -> str:
    """SVG, the same bytes for the same code."""
    columns = {folder: list(_column(folder)) for folder in ORDER}
    height = TOP + max(y for lines in columns.values() for y, *_ in lines) + 2 * LINE
    width = 2 * LEFT + len(ORDER) * (COLUMN + GAP) - GAP
    ground = sorted(path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("__"))
    floor = f"{height + 22}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 44}" role="img" aria-labelledby="t d"'
        ' font-family="ui-sans-serif, system-ui, sans-serif" font-size="12">',
        '<title id="t">The folders of gemscope and what imports what</title>',
        f'<desc id="d">From left to right: {", ".join(ORDER)}. Every arrow points to the left.</desc>',
        f'<rect width="{width}" height="{height + 44}" rx="10" fill="#fff"/>',
    ]
    out += [_arc(one, other, count) for (one, other), count in sorted(arcs().items())]
    for place, folder in enumerate(ORDER):
        x, hue = _left(place), HUES[place]
        deep = columns[folder][-1][0] + LINE
        out.append(f'<rect x="{x}" y="{TOP}" width="{COLUMN}" height="{deep + 8}" rx="8" fill="hsl({hue} 60% 95%)"/>')
        for y, text, style in columns[folder]:
            out.append(f'<text x="{x + 9}" y="{TOP + y}" {style.format(hue=hue)}>{escape(text)}</text>')
    out.append(f'<rect x="{LEFT}" y="{height}" width="{width - 2 * LEFT}" height="34" rx="8" fill="#eee"/>')
    out.append(
        f'<text x="{LEFT + 9}" y="{floor}"><tspan font-weight="700" font-size="15">the ground floor</tspan>'
        f'<tspan fill="#333" dx="14">{escape(" · ".join(ground))}</tspan></text>'
    )
    return "\n".join([*out, "</svg>"]) + "\n"


def _column(folder: str) -> Iterator[tuple[int, str, str]]:
    """(y, text, style) of what is written in a folder's column."""
    y = 24
    yield y, folder, 'font-size="17" font-weight="700" fill="hsl({hue} 70% 24%)"'
    for words in _wrapped(SAYS[folder]):
        y += LINE - 1
        yield y, words, 'fill="#555" font-style="italic" font-size="11.5"'
    for within, names in shelves(folder):
        y += 8
        if within:
            y += LINE
            yield y, f"{within}/", 'font-weight="600" fill="hsl({hue} 60% 30%)"'
        for name in names:
            y += LINE
            yield y, ("  " if within else "") + name, 'fill="#222" xml:space="preserve"'


def _wrapped(text: str, length: int = 17) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines + [" "] * (3 - len(lines))


def _arc(one: str, other: str, count: int) -> str:
    """From the importing folder's roof to the imported one's, higher the farther apart they are."""
    away, home = ORDER.index(one), ORDER.index(other)
    start, end = _left(away) + COLUMN * 0.30, _left(home) + COLUMN * (0.45 + 0.05 * (away - home))
    high = TOP - 26 - (TOP - 40) * ((away - home) / (len(ORDER) - 1)) ** 0.75 * 1.28
    stroke = 1 + sum(count >= often for often in OFTEN)
    hue = HUES[home]
    return (
        f'<g fill="none" stroke="hsl({hue} 55% 50%)" stroke-opacity=".75" stroke-width="{stroke}"><title>{one} imports '
        f'from {other}</title><path d="M{start:.0f} {TOP - 2}C{start:.0f} {high:.0f} {end:.0f} {high:.0f} {end:.0f} '
        f'{TOP - 8}"/><path d="M{end - 4:.0f} {TOP - 9}L{end:.0f} {TOP - 2}L{end + 4:.0f} {TOP - 9}Z" '
        f'fill="hsl({hue} 55% 50%)" stroke="none"/></g>'
    )


@cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _left(place: int) -> int:
    return LEFT + place * (COLUMN + GAP)
