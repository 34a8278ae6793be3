"""Lists of one's own: features kept from their pages, with notes, in an order, out of all atlases that are served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gemscope.app.asking import body_of, shelf_of
from gemscope.app.keeping import keeping
from gemscope.app.requests import ListHead, ListImport, ListKeep, ListMove, ListNote, ListRemove
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Shelf, Source
from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.notes.kept import FeatureList, Kept, from_json, read_address
from gemscope.atlas.notes.lists import Lists
from gemscope.atlas.notes.share import shared
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFound
from gemscope.pages.links import ServerLinks

T = TypeVar("T")

LINKS = ServerLinks()


def lists_of(request: Request) -> Lists:
    """Those of whoever started the server."""
    found: Lists = request.app.state.lists
    return found


def names_of(request: Request) -> list[str]:
    """What they are called."""
    return [one.name for one in lists_of(request)]


@dataclass(frozen=True)
class Line:
    """An entry of a list as a page shows it."""

    kept: Kept
    url: str
    """Of the feature's page; "" where its atlas is not served."""
    label: str | None
    """What it is said to stand for now; as it stood, where its atlas is not served."""
    changed: bool
    """Whether it was said to stand for something else when it was taken in."""
    density: float | None = None
    max: float | None = None
    """None where its atlas is not served."""
    before: str = ""
    """The address of the entry before it; "" for the first."""
    beyond: str | None = None
    """That of the second behind it, "" where there is only one, None for the last entry."""


# --- reading ----------------------------------------------------------------------------------------------------------


async def all_lists(request: Request) -> Response:
    """All lists."""
    found, problems = await run_in_threadpool(lambda: (list(lists_of(request)), lists_of(request).problems))
    if wants_data(request):
        return data(request, {"lists": [_data(one) for one in found], "problems": problems})
    return page(request, "lists.html", links=LINKS, lists=found, problems=problems)


async def one_list(request: Request) -> Response:
    """One list."""
    return await _shown(request, await run_in_threadpool(_named, request))


async def share(request: Request) -> Response:
    """One list as a file that needs nothing beside it."""
    found = await run_in_threadpool(_named, request)
    served = shelf_of(request)

    def find(kept: Kept) -> tuple[Dashboard, Any] | None:
        source = _source(served, kept)
        return None if source is None else (source[kept.index], source.manifest)

    html = await run_in_threadpool(shared, found, find)
    beside = {"content-disposition": f'attachment; filename="{found.id}.html"'}
    return HTMLResponse(html.encode("utf-8", "replace"), headers=beside)


def _named(request: Request) -> FeatureList:
    return lists_of(request)[request.path_params["list"]]


async def _shown(request: Request, found: FeatureList, *, status: int = 200, **beside: Any) -> Response:
    if wants_data(request):
        return data(request, _data(found), status=status)
    lines = await run_in_threadpool(_lines, shelf_of(request), found)
    sources = {one.address: one for one in shelf_of(request)}
    served = dict.fromkeys(at for one in found if (at := (one.model, one.source)) in sources)
    return await run_in_threadpool(
        page,
        request,
        "list.html",
        links=LINKS,
        status=status,
        list=found,
        lines=lines,
        sources=[sources[at] for at in served],
        **{"conflict": None, "typed_note": "", "message": "", **beside},
    )


def _data(found: FeatureList) -> dict[str, Any]:
    return {**found.to_dict(), "id": found.id, "url": LINKS.lists(found.id)}


def _lines(served: Shelf, found: FeatureList) -> list[Line]:
    labels: dict[tuple[str, str], dict[int, str]] = {}
    by_source: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in found:
        by_source[one.model, one.source].append(one.index)
    sources = {one.address: one for one in served if one.address in by_source}
    for at, source in sources.items():
        labels[at] = source.atlas.labels([index for index in by_source[at] if index < len(source.atlas)])
    addresses = [*(one.address for one in found), ""]
    lines = []
    for place, one in enumerate(found):
        at = one.model, one.source
        there = sources.get(at)
        known = there is not None and one.index < len(there.atlas)
        now = labels[at].get(one.index) if known else one.label or None
        figures = [float(part[one.index]) for part in there.figures] if there and known else [None, None]
        lines.append(
            Line(
                one,
                there.links.feature(one.index) if there and known else "",
                now,
                known and bool(one.label) and now != one.label,
                *figures,
                before=addresses[place - 1] if place else "",
                beyond=None if place == len(found) - 1 else addresses[place + 2],
            )
        )
    return lines


def _source(served: Shelf, kept: Kept) -> Source | None:
    """The atlas that an entry is of, where it is served and has that feature."""
    found = next((one for one in served if one.address == (kept.model, kept.source)), None)
    return found if found is not None and kept.index < len(found.atlas) else None


# --- changing ---------------------------------------------------------------------------------------------------------


async def keep(request: Request) -> Response:
    """Takes features into a list, which is made where there is none of that name."""
    asked = await body_of(request, ListKeep)
    if not asked.features:
        raise InputError("feature is missing: name at least one to keep")
    served = shelf_of(request)

    def work() -> FeatureList:
        taken = [_taken(served, one) for one in asked.features]
        return lists_of(request).add(asked.list, *taken, note=_lines_of(asked.note))

    made = await run_in_threadpool(work)
    if wants_data(request):
        return data(request, _data(made), status=201)
    first = read_address(asked.features[0])
    source = served.get(*first[:2])
    if wants_part(request):
        return (
            page(request, "kept.html", links=LINKS, list=made, count=len(set(asked.features)))
            if asked.several
            else kept_part(request, source, first[2])
        )
    alone = len(asked.features) == 1 and not asked.several
    return RedirectResponse(source.links.feature(first[2]) if alone else LINKS.lists(made.id), 303)


def _taken(served: Shelf, address: str) -> Kept:
    model, name, index = read_address(address)
    source = served.get(model, name)
    if index >= len(source.atlas):
        raise NotFound(f"no feature {index}: {name} has features 0 to {len(source.atlas) - 1}")
    label = source.atlas.labels([index]).get(index, "")
    return Kept(model=model, source=name, index=index, label=label[:2000])


def kept_part(request: Request, source: Source, index: int) -> Response:
    """The part of a feature's page that says which lists it is in."""
    kept = keeping(lists_of(request), source, index)
    return page(request, "keep.html", links=source.links, keeping=kept, opened=True)


async def new(request: Request) -> Response:
    """An empty list."""
    asked = await body_of(request, ListHead)
    made = await run_in_threadpool(lists_of(request).new, asked.name, _lines_of(asked.about))
    return (
        data(request, _data(made), status=201) if wants_data(request) else RedirectResponse(LINKS.lists(made.id), 303)
    )


async def take_in(request: Request) -> Response:
    """A list that was exported, here or by Neuronpedia: its features go behind those of the list of that name."""
    asked = await body_of(request, ListImport)

    def work() -> FeatureList:
        try:
            given = from_json(asked.text, where="the list", name=asked.name)
        except CorruptFile as error:
            raise InputError(str(error)) from None
        return lists_of(request).put(given)

    made = await run_in_threadpool(work)
    return (
        data(request, _data(made), status=201) if wants_data(request) else RedirectResponse(LINKS.lists(made.id), 303)
    )


def _made(request: Request, found: FeatureList) -> Response:
    if wants_data(request):
        return data(request, _data(found), status=201)
    return RedirectResponse(LINKS.lists(found.id), 303)


async def head(request: Request) -> Response:
    """Another name, and another word on what it is about."""
    asked = await body_of(request, ListHead)
    return await _changed(request, lambda lists, id_: lists.edit(id_, rename=asked.name, about=_lines_of(asked.about)))


async def move(request: Request) -> Response:
    """Puts an entry before another, or behind all."""
    asked = await body_of(request, ListMove)
    key, before = read_address(asked.feature), read_address(asked.before) if asked.before else None
    return await _changed(request, lambda lists, id_: lists.move(id_, key, before=before), at=asked.feature)


async def remove(request: Request) -> Response:
    """Takes entries out."""
    asked = await body_of(request, ListRemove)
    keys = [read_address(one) for one in asked.features]
    return await _changed(request, lambda lists, id_: lists.remove(id_, *keys))


async def note(request: Request) -> Response:
    """Another note for an entry; not where somebody else has changed it since: what was typed is given back."""
    asked = await body_of(request, ListNote)
    key, said = read_address(asked.feature), _lines_of(asked.note)
    try:
        return await _changed(
            request, lambda lists, id_: lists.annotate(id_, key, said, was=_lines_of(asked.was)), at=asked.feature
        )
    except Mismatch as error:
        if wants_data(request):
            return data(request, {"error": str(error)}, status=409)
        found = await run_in_threadpool(_named, request)
        return await _shown(request, found, status=409, conflict=key, typed_note=said, message=str(error))


async def delete(request: Request) -> Response:
    """Takes a list away."""
    await request.body()
    await run_in_threadpool(lists_of(request).delete, request.path_params["list"])
    return Response(status_code=204) if wants_data(request) else RedirectResponse(LINKS.lists(), 303)


async def _changed(request: Request, change: Callable[[Lists, str], FeatureList], *, at: str = "") -> Response:
    """Changes a list; then it is shown, from the entry `at` on."""
    made = await run_in_threadpool(change, lists_of(request), request.path_params["list"])
    if wants_data(request):
        return data(request, _data(made))
    place = next((number for number, one in enumerate(made) if one.address == at), None)
    return RedirectResponse(LINKS.lists(made.id) + ("" if place is None else f"#entry-{place + 1}"), 303)


def _lines_of(text: str) -> str:
    """As a form's field gives it back."""
    return text.replace("\r\n", "\n")
