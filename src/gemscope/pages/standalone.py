"""Pages that need nothing beside them: one HTML file with its styles and scripts inside, or a frame with one in it.

A policy in the file names those styles and scripts by their digests; nothing else runs, and nothing is fetched.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from gemscope.pages.labels import headline
from gemscope.pages.links import Links, NoLinks
from gemscope.pages.render import line, render, sae_of

HEIGHT = 640
"""Pixels of a frame in a notebook."""


def document(body_html: str, *, title: str, styled: tuple[str, ...] = ()) -> str:
    """A whole HTML file around a body that is HTML already; the title is text. `styled` names what it needs of styles
    beyond those of all pages.
    """
    styles, script, policy = _assets(styled)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(line(title))} · gemscope</title>\n"
        f"<style>{styles}</style>\n<script>{script}</script>\n</head>\n"
        f'<body class="alone">\n<main>\n{body_html}\n</main>\n</body>\n</html>\n'
    )


def sheet(parts: Sequence[str], notes: Sequence[str], *, title: str) -> str:
    """A whole HTML file of what notebooks show, one under another, and notes in words. It runs no scripts: what stands
    here came out of a model.
    """
    said = "".join(f"<p><small>{escape(line(note))}</small></p>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(line(title))}</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root{color-scheme:light dark;background:Canvas;color:CanvasText}"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;overflow-wrap:break-word}"
        "h1{font-size:1.3em}td,th{padding:2px 12px 2px 0}svg{max-width:100%}</style></head>"
        f"<body><main><h1>{escape(line(title))}</h1>{'<hr>'.join(parts)}{said}</main></body></html>\n"
    )


def frame(html: str, height: int = HEIGHT) -> str:
    """A whole HTML file as a frame within another page: it can run its own scripts and reach nothing else."""
    return (
        f'<iframe srcdoc="{escape(html)}" width="100%" height="{int(height)}" frameborder="0" '
        'sandbox="allow-scripts allow-popups"></iframe>'
    )


def article(feature: object, manifest: object | None = None, *, links: Links | None = None) -> str:
    """What a feature's page holds, for a document of one or of several."""
    links = links or NoLinks()
    place = links.prefix if isinstance(links, NoLinks) else "feature-"
    return render(
        "feature_article.html",
        links=links,
        id=f"{place}{feature.index}",  # type: ignore[attr-defined]
        feature=feature,
        manifest=manifest,
        live=False,
        embed=None,
        test_text="",
    )


def feature_document(feature: object, manifest: object | None = None) -> str:
    """A feature's page as one file. `feature` is a dashboard, `manifest` says where it came from."""
    return document(article(feature, manifest), title=titled(feature, manifest))


def titled(feature: Any, manifest: object | None = None) -> str:
    """A feature and its SAE, as a document's title."""
    return f"{headline(feature.label, feature.index)} · {sae_of(manifest) if manifest else feature.source}"


def feature_frame(feature: object, manifest: object | None = None, *, height: int = HEIGHT) -> str:
    """A feature's page as a frame: what a notebook shows."""
    return frame(feature_document(feature, manifest), height)


@cache
def _assets(styled: tuple[str, ...]) -> tuple[str, str, str]:
    """Styles, scripts, and the policy that allows these and no others."""
    folder = files("gemscope.pages") / "static"
    styles = _lean("\n".join((folder / name).read_text("utf-8") for name in ("gemscope.css", *styled)))
    names = ("theme.js", "page.js", "token-strip.js")
    # In the head of a file they run before its body is there: what theme.js does must come first, the rest last.
    first, *rest = ((folder / name).read_text("utf-8") for name in names)
    later = "\n".join(rest)
    script = f'{first}addEventListener("DOMContentLoaded", () => {{\n{later}}});\n'
    script = re.sub(r"^\s*//.*\n", "", script, flags=re.MULTILINE)
    script = re.sub(r"^\s+", "", script, flags=re.MULTILINE)
    policy = f"default-src 'none'; img-src data:; style-src {_digest(styles)}; script-src {_digest(script)}"
    return styles, script, policy


def _lean(css: str) -> str:
    css = re.sub(r"/\* On the server alone.*?/\* Everywhere again \*/", "", css, flags=re.DOTALL)
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "", re.sub(r"\s*([{};,])\s*", r"\1", css))


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
