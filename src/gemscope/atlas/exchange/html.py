"""Pages that need no server: one file of chosen features, or a folder with all of them for any file server."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.atlas.exchange.folder import chosen, slug
from gemscope.atlas.mapped import Points
from gemscope.disk import folder_aside, written_aside
from gemscope.errors import InputError
from gemscope.pages.labels import said
from gemscope.pages.links import PAGE, NoLinks, SiteLinks
from gemscope.pages.render import label, render, sae_of
from gemscope.pages.standalone import article, document, titled

if TYPE_CHECKING:
    from gemscope.atlas.dashboard import Dashboard, Summary
    from gemscope.atlas.reader import Atlas

_MANY = 1000
"""Features beyond which one file (18 kB each) is more than browsers like."""
SHARD = 4096
"""Features in one file of labels, which the site's own search reads."""


# --- one file -------------------------------------------------------------------------------------------------------


def export_html(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """One HTML file with everything inside it. Raises InputError where that would be too many features, NotFound,
    FileError, StorageFull."""
    wanted = chosen(features, len(atlas))
    if len(wanted) > _MANY:
        raise InputError(f"{len(wanted):,} features are too many for one file: choose up to {_MANY:,}, or make a site")
    manifest = atlas.manifest
    links = NoLinks(within=frozenset(wanted))
    with written_aside(to) as aside:
        pages = [atlas[index] for index in wanted]
        several = f"{len(wanted)} features of {manifest.model_id} · {sae_of(manifest)}"
        title = titled(pages[0], manifest) if len(pages) == 1 else several
        body = [_contents(pages)] if len(pages) > 1 else []
        body += [article(page, manifest, links=links) for page in pages]
        aside.write_text(document("\n".join(body), title=title), encoding="utf-8", errors="replace")
    return to


def _contents(pages: Sequence[Dashboard]) -> str:
    items = (
        f'<li><a href="#feature-{page.index}">{page.index}</a> {escape(label(page.label or "", 160))}</li>'
        for page in pages
    )
    return f'<nav aria-label="Features in this file"><ul>{"".join(items)}</ul></nav>'


# --- a folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Within(SiteLinks):
    """Where a site holds some features alone, the others cannot be reached."""

    features: Collection[int] = ()

    def feature(self, index: int) -> str:
        return super().feature(index) if index in self.features else ""


def export_site(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """A folder `to`: `index.html`, `{model}/{source}/index.html` with the table of features, and for each feature
    `{index}/index.html`, its data beside it as `index.json`. Works from any file server and from the disk, the search
    in labels too; `?embed=true` works as on the server.

    Raises FileError where the folder exists, StorageFull, NotFound, InputError.
    """
    wanted = chosen(features, len(atlas))
    manifest = atlas.manifest
    model, source = slug(manifest.model_id), slug(manifest.source_id)
    with folder_aside(to) as aside:
        _copy_static(aside / "static")
        place = aside / model / source
        place.mkdir(parents=True)

        reached = wanted if isinstance(wanted, range) else frozenset(wanted)
        mapped = atlas.places is not None and len(wanted) == len(atlas)

        def links(depth: int) -> SiteLinks:
            return _Within(depth, model, source, mapped, reached)

        living = atlas.count(dead=False)
        figures = {"living": living, "dead": len(atlas) - living, "standing": atlas.standing}
        mine = {"manifest": manifest, "links": links(0)} | figures
        best = [one for one in atlas.striking() if one.feature in reached]
        shown = {"pages": len(wanted), "striking": best, "glances": atlas.glances(one.feature for one in best)}
        _write(aside / "index.html", render("home.html", links=SiteLinks(0), atlases=[mine], **shown))
        _write_table(atlas, place, wanted, links(2))
        _write_labels(atlas, place / "labels", wanted)
        if mapped:
            _write_map(atlas, place, links(2))
        for at, index in enumerate(wanted):
            page = atlas[index]
            (place / str(index)).mkdir()
            html = render(
                "feature.html",
                links=links(3),
                feature=page,
                manifest=manifest,
                live=False,
                previous=wanted[at - 1] if at else None,
                following=wanted[at + 1] if at + 1 < len(wanted) else None,
                embed=None,
                test_text="",
            )
            _write(place / str(index) / "index.html", html)
            _write(place / str(index) / "index.json", json.dumps(page.to_dict(), ensure_ascii=False))
    return to


def _write_table(atlas: Atlas, place: Path, wanted: Sequence[int], links: SiteLinks) -> None:
    query: dict[str, Any] = dict.fromkeys(
        ("text", "dead", "labelled", "min_density", "max_density", "min_max", "max_max")
    )
    for number, start in enumerate(range(0, len(wanted), PAGE)):
        html = render(
            "browse.html",
            links=links,
            manifest=atlas.manifest,
            summaries=list(_summaries(atlas, wanted[start : start + PAGE])),
            glances=atlas.glances(wanted[start : start + PAGE]),
            total=len(wanted),
            query=query | {"order": "index", "descending": False, "offset": start, "limit": PAGE},
            points=atlas.scatter() if number == 0 and len(wanted) == len(atlas) else None,
        )
        _write(place / ("index.html" if number == 0 else f"page-{number + 1}.html"), html)


def _write_labels(atlas: Atlas, folder: Path, wanted: Sequence[int]) -> None:
    """What the site's search reads: index, label, and the token that the strongest example fires on."""
    folder.mkdir()
    shards = range(0, len(wanted), SHARD)
    for number, start in enumerate(shards):
        some = [
            [one.feature, said(one.label or ""), one.token or ""]
            for one in _summaries(atlas, wanted[start : start + SHARD])
        ]
        shard = json.dumps({"of": len(shards), "features": some}, ensure_ascii=False)
        # A script that calls: from the disk, browsers load scripts and refuse to read data.
        _write(folder / f"{number}.js", f"gemscopeLabels({number},{shard});\n")


def _write_map(atlas: Atlas, place: Path, links: SiteLinks) -> None:
    """The page, and beside it in scripts what the server would answer: the points, and labels a tile at a time."""
    densities, maxima = np.zeros((2, len(atlas)))
    living, densities[living], maxima[living] = atlas.scatter()
    assert atlas.places is not None
    points = Points(atlas, atlas.places, atlas.right(), (densities, maxima))
    html = render("map.html", links=links, manifest=atlas.manifest, points=points, lit=[], note="", said="", asked=None)
    _write(place / "map.html", html)
    (place / "map" / "tiles").mkdir(parents=True)
    drawn = b64encode(points.bytes).decode()
    _write(place / "map" / "points.js", f'gemscopeMap("points","{drawn}");\n')
    for number in sorted(set(points.tiles.tolist())):
        tile = json.dumps(points.tile(number), ensure_ascii=False)
        _write(place / "map" / "tiles" / f"{number}.js", f'gemscopeMap("{number}",{tile});\n')


def _summaries(atlas: Atlas, wanted: Sequence[int]) -> Iterator[Summary]:
    if not wanted:
        return
    kept = wanted if isinstance(wanted, range) else set(wanted)
    for start in range(wanted[0], wanted[-1] + 1, SHARD):
        for one in atlas.summaries(offset=start, limit=min(SHARD, wanted[-1] + 1 - start)):
            if one.feature in kept:
                yield one


def _copy_static(to: Path) -> None:
    """The server's own files; the script that every page loads does what the server does for frames and searches."""
    with as_file(files("gemscope.pages") / "static") as folder:
        shutil.copytree(folder, to)
    for path in to.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    script = (files("gemscope.atlas.exchange") / "site.js").read_text("utf-8")
    with (to / "page.js").open("a", encoding="utf-8") as file:
        file.write(f"\n{script}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")
