"""All features on a map: its page, what the page's script draws, and labels a tile at a time."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import index_of, query_of, source_of
from gemscope.app.kept import lists_of
from gemscope.app.requests import Mapped
from gemscope.app.responses import data, page, wants_data
from gemscope.app.shelf import Source
from gemscope.atlas.mapped import Points
from gemscope.errors import NotFound
from gemscope.pages.charts import plane

_FOUND = 200
"""Features that a search lights up."""
_FOR_EVER = "private, max-age=31536000, immutable"


def points_of(source: Source) -> Points | None:
    """None for an atlas without a map."""
    places, right = source.atlas.places, source.atlas.right()
    if places is None:
        return None
    found = source.maps.get("now")
    if found is None or found.right is not right:
        found = source.maps["now"] = Points(source.atlas, places, right, source.figures)
    return found


async def feature_map(request: Request) -> Response:
    """The map, with what a search or a list of one's own names lit up on it."""
    source, asked = await source_of(request), query_of(request, Mapped)
    lit, said, note = await run_in_threadpool(_lit, request, source, asked)
    found = await run_in_threadpool(points_of, source)
    if wants_data(request):
        return data(request, _data(source, found, lit))
    return await run_in_threadpool(
        page,
        request,
        "map.html",
        links=source.links,
        manifest=source.manifest,
        points=found,
        asked=asked,
        lit=lit,
        said=said,
        note=note,
        lists=list(lists_of(request)),
        summaries=source.atlas.listed(lit[:_FOUND]),
        glances=source.atlas.glances(lit[:_FOUND]),
    )


def _data(source: Source, found: Points | None, lit: list[int]) -> dict[str, Any]:
    manifest = source.manifest
    if found is None:
        return {"places": None, "why": manifest.no_map}
    return {
        "places": found.places.tolist(),
        "lit": lit,
        "regions": [{"feature": one.feature, "label": one.label, "level": one.level} for one in found.regions],
        "method": manifest.map.method if manifest.map else None,
    }


def _lit(request: Request, source: Source, asked: Mapped) -> tuple[list[int], str, str]:
    """Features that are lit up, what they are, and what went wrong."""
    if asked.list:
        lists = lists_of(request)
        if asked.list not in lists:
            return [], "", f"There is no list {asked.list[:80]!r}."
        chosen = lists[asked.list]
        here = [one.index for one in chosen if (one.model, one.source) == source.address]
        lit = [index for index in here if index < len(source.atlas)]
        return lit, f"of the list {chosen.name}", "" if lit else f"The list {chosen.name} has no feature of this atlas."
    if asked.text.strip():
        lit = [one.feature for one in source.atlas.search(asked.text, limit=_FOUND)]
        return lit, f"whose labels say {asked.text.strip()}", "" if lit else "No label says that."
    if asked.feature is not None:
        if asked.feature >= len(source.atlas):
            return [], "", f"There is no feature {asked.feature}: there are 0 to {len(source.atlas) - 1}."
        return [asked.feature], "", ""
    return [], "", ""


async def points(request: Request) -> Response:
    """`plane.encoded`: what the page's script draws."""
    found = await run_in_threadpool(_points, await source_of(request))
    content = await run_in_threadpool(lambda: found.bytes)
    return Response(content, headers=_kept(request, found), media_type="application/octet-stream")


async def tile(request: Request) -> Response:
    """Labels of the features in a part of the map; where there is none, the token that the feature fires on most."""
    number = index_of(request, "tile")
    found = await run_in_threadpool(_points, await source_of(request))

    if number >= plane.TILES**2:
        raise NotFound(f"no tile {number}: there are 0 to {plane.TILES**2 - 1}")
    answer = data(request, await run_in_threadpool(found.tile, number))
    answer.headers.update(_kept(request, found))
    return answer


def _points(source: Source) -> Points:
    found = points_of(source)
    if found is None:
        raise NotFound("this atlas has no map of its features: gemscope atlas map makes one")
    return found


def _kept(request: Request, found: Points) -> dict[str, str]:
    """An address that carries the digest of what is there may be kept for ever."""
    return {"cache-control": _FOR_EVER} if request.query_params.get("v") == found.digest else {}
