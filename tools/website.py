"""What the documentation site holds beyond docs/ as it lies there: pages out of the code (what the shell says to --help,
the docstrings of public names), out of notebooks, and out of files beside docs/ (CHANGELOG, CONTRIBUTING). mkdocs calls this (`make site`).

Links are written as they work in the repository; what they lead to that is no page here leads to the repository itself.
A link to nothing, and a page that would fetch anything from elsewhere, end the build.
"""

import json
import os
import re
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/gemscope/gemscope/blob/main"
BESIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/scaling.svg": "scaling.svg",
}
"""Files of the repository that are pages here, and their places."""
FOLDERS = {
    "text": "Text: corpora that can be read again, and the tokens of it.",
    "activations": "The model, its sites, and what flows through them.",
    "features": "SAEs and what they make of activations.",
    "edits": "Changes to a running model, as values, and how strong they are.",
    "training": "Learning an SAE of one's own.",
    "atlas": "The dictionary of features: making it, reading it, labels, other tools' formats.",
    "reports": "What is said of a prompt, of features, of an SAE, of a corpus.",
    "scope": "SAEs all over a model, in one command.",
    "app": "The server that shows atlases in the browser.",
}
"""What holds public names, in the order of the design."""

WIDTH = 92
"""Columns of --help."""


def commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser and, in their order, those of its commands and of theirs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for one in dict.fromkeys(action.choices.values()):
                yield from commands(one)


def shell() -> str:
    """What every command says to --help."""
    sys.path.insert(0, str(ROOT / "src"))
    from gemscope.cli.main import parser

    parts = ["# The shell", "Every command, as `--help` says it."]
    with patch.dict(os.environ, {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}):
        for one in commands(parser()):
            level = "#" * (2 + max(len(one.prog.split()) - 2, 0))
            parts.append(f"{level} {one.prog}\n\n```text\n{one.format_help().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def public() -> dict[str, list[tuple[str, str]]]:
    """(name, where it lives) of every public name, by folder."""
    stub = (ROOT / "src/gemscope/__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, list[tuple[str, str]]] = {folder: [] for folder in FOLDERS}
    for module, name in re.findall(r"^from (gemscope\.\S+) import (\w+) as \2$", stub, re.MULTILINE):
        found[module.split(".")[1]].append((name, f"{module}.{name}"))
    return found


def reference() -> dict[str, str]:
    """A page for each folder's public names, and one of errors."""
    pages = {}
    for folder, names in public().items():
        listed = " · ".join(f"[`{name}`][{path}]" for name, path in names)
        asked = "\n\n".join(
            f"::: {path}\n    options:\n      heading: gs.{name}\n      toc_label: {name}" for name, path in names
        )
        pages[f"api/{folder}.md"] = f"# {folder}\n\n{FOLDERS[folder]}\n\n{listed}\n\n{asked}\n"
    pages["api/errors.md"] = (
        "# errors\n\nEvery error that a user can cause is a `gs.errors.GemscopeError`.\n\n"
        "::: gemscope.errors\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
        ""
    )
    return pages


@cache
def made() -> dict[str, str]:
    """The pages that are made out of the code."""
    return {"cli.md": shell(), **reference()}


def pages_of_notebooks() -> dict[str, str]:
    """The notebooks of docs/: text, code, and what it showed when it ran."""
    return {f"{path.stem}.md": shown(path) for path in sorted((ROOT / "docs").glob("*.ipynb"))}


def shown(path: Path) -> str:
    """A notebook as a page."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(relinked(text, f"docs/{path.name}", f"{path.stem}.md"))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:  # without empty lines: one block, and no Markdown in it
                lines = "".join(data["text/html"]).splitlines()
                parts.append("<div class='shown'>\n" + "\n".join(line for line in lines if line.strip()) + "\n</div>")
            elif printed := "".join(data["text/plain"]).rstrip():
                parts.append(f"````text\n{printed}\n````")
    parts.insert(1, f"[As a notebook]({path.name}){{ .notebook download }}")
    return "\n\n".join(parts) + "\n"


def relinked(text: str, of: str, at: str) -> str:
    """Links of a repository's file, made those of the page `at`."""

    def lead(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if "://" in target or not target or target.startswith("mailto:"):
            return found[0]
        path = PurePosixPath(os.path.normpath(PurePosixPath(of).parent / target))
        inside = path.relative_to("docs") if path.is_relative_to("docs") else None
        if not (ROOT / path).exists() and str(inside) not in made():
            raise SystemExit(f"{of}: a link leads to {path}, which is not there")
        if inside and not (ROOT / path).is_dir():
            place = str(inside.with_suffix(".md") if path.suffix == ".ipynb" else inside)  # a notebook's page
        else:
            place = BESIDE.get(str(path), f"{REPOSITORY}/{path}")
        if "://" not in place:
            place = os.path.relpath(place, PurePosixPath(at).parent)
        return f"{found[1]}{place}{'#' if anchor else ''}{anchor}{found[3]}"

    return re.sub(r"(\]\()([^)\s]+)(\))", lead, text)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, and those that lie beside docs/."""
    from mkdocs.structure.files import File

    pages = {**made(), **pages_of_notebooks()}
    for of, at in BESIDE.items():
        if at.endswith(".md"):
            pages[at] = relinked((ROOT / of).read_text(encoding="utf-8"), of, at)
        else:
            files.append(File.generated(config, at, abs_src_path=str(ROOT / of)))
    for at, text in pages.items():
        files.append(File.generated(config, at, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Of pages of docs/ itself."""
    if page.file.generated_by:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|input)\b[^>]*?\bsrc\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|preconnect|icon|modulepreload|dns-prefetch))[^>]*?\bhref\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:@import\s+(?:url\()?|url\()\s*["']?((?:https?:)?//[^"'\s)]+)""",
    re.IGNORECASE,
)
"""What a browser would get from elsewhere as it shows a page."""


def fetched(folder: Path) -> list[str]:
    """All that pages and styles in a folder would fetch from elsewhere, as `file: address`."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".html", ".css", ".svg"}:
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(folder)}: {next(filter(None, m.groups()))}" for m in FETCHED.finditer(text)]
    return found


def on_post_build(config: Any) -> None:
    """Nothing is fetched from anywhere."""
    if found := fetched(Path(config.site_dir)):
        raise SystemExit("the site would fetch from elsewhere:\n" + "\n".join(found))
