"""Values in, HTML out: the one Jinja environment and the words that templates use for numbers and hostile text.

Values are read by name alone: nothing here knows where a feature, a manifest or a look came from.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gemscope.activations.site import KINDS, described
from gemscope.edits import defaults
from gemscope.edits.ways import WAYS
from gemscope.pages import numbers, rows, strips
from gemscope.pages.changes import changes
from gemscope.pages.charts.bar import bar
from gemscope.pages.charts.histogram import histogram
from gemscope.pages.charts.plane import drawn as plane_of
from gemscope.pages.charts.scatter import scatter
from gemscope.pages.charts.spark import spark
from gemscope.pages.glance import snippet
from gemscope.pages.labels import headline, said
from gemscope.pages.links import Links, NoLinks, ServerLinks, SiteLinks
from gemscope.text.pieces import Piece
from gemscope.text.printable import clipped, readable
from gemscope.text.rows import passed_over

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Links", "NoLinks", "ServerLinks", "SiteLinks", "render", "warm"]


def render(template: str, *, links: Links, **values: object) -> str:
    """The page or fragment that `templates/{template}` makes of its values.

    Everything is escaped that is not made here. A value that the template asks for and is not given is an error.
    """
    return _environment().get_template(template).render(links=links, **values)


def warm() -> None:
    """Reads all templates, for which else the first page of each kind would wait."""
    made = _environment()
    for name in made.list_templates():
        made.get_template(name)


@lru_cache(maxsize=512)
def fixed(template: str, links: Links, here: str = "") -> Markup:
    """A part that is the same on many pages, made once."""
    return Markup(render(template, links=links, here=here))


def provenance(manifest: object) -> Markup:
    """Where all features of an atlas came from: made once."""
    kept = _PROVENANCE.get(id(manifest))
    if kept is None:
        if len(_PROVENANCE) >= 64:
            _PROVENANCE.clear()
        made = Markup(render("provenance.html", links=NoLinks(), manifest=manifest))
        kept = _PROVENANCE[id(manifest)] = manifest, made  # as long as it is held here, nothing else has its id
    return kept[1]


_PROVENANCE: dict[int, tuple[object, Markup]] = {}


def line(text: str, length: int = 400) -> str:
    """Text that others wrote, for one line: clipped, control characters spelt out."""
    return readable(clipped(text.spelt if isinstance(text, Piece) else text, length))


def label(text: str, length: int = 400) -> str:
    """What a feature stands for, for one line."""
    return clipped(said(text), length)


def typed(text: str) -> str:
    """What a reader typed, given back to them as it was but for what HTML cannot hold."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def sae_of(manifest: Any) -> str:
    """The SAE of an atlas in few characters: 15.res 8k."""
    return line(f"{described(manifest.site, manifest.site_out)} {numbers.wide(manifest.d_sae)}")


def placed(site: str, site_out: str) -> str:
    """The same for somebody who does not know the names of sites."""
    known = KINDS.get(site.rpartition(".")[2])
    return described(site, site_out) + (f" ({known})" if known else "")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    class Lean(Environment):
        """No template has globals of its own. A page asks for them a thousand times, and a dict says it at once."""

        def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
            return super().make_globals(d) if d else self.globals

    made = Lean(
        loader=PackageLoader("gemscope.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "figure": numbers.figure,
        "signed": numbers.signed,
        "percent": numbers.percent,
        "short": numbers.short,
        "token": strips.token,
        "label": label,
        "line": line,
        "often": numbers.often,
        "typed": typed,
        "many": numbers.many,
    }
    made.globals |= {
        "bar": bar,
        "changes": changes,
        "described": described,
        "fixed": fixed,
        "headline": headline,
        "hint": rows.hint,
        "histogram": histogram,
        "kinds": KINDS,
        "logit_rows": rows.logits,
        "neighbour_rows": rows.neighbours,
        "partner_rows": rows.partners,
        "kindred_rows": rows.kindred,
        "passed_over": passed_over,
        "placed": placed,
        "plane_of": plane_of,
        "provenance": provenance,
        "ranges_of": rows.ranges,
        "sae_of": sae_of,
        "scatter": scatter,
        "shade": strips.shade,
        "snippet": snippet,
        "spark": spark,
        "example_of": strips.example,
        "strip": strips.strip,
        "strongest_of": rows.strongest,
        "usual": defaults,
        "ways": WAYS,
    }
    return made
