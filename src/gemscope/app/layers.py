"""A text at all layers of a model: one pass, and at each site the features that say most of each token."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.activations.site import Site
from gemscope.app.asking import MEASURING, ask, asked_of, pressed, shelf_of
from gemscope.app.home import TO_TRY, scored
from gemscope.app.requests import Layers, said
from gemscope.app.responses import data, moved, page, shared, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError, InputError, SiteNotFound
from gemscope.pages.layers import SPAN, rows_of
from gemscope.pages.links import ModelLinks, ServerLinks

TOKENS = 2_000
"""Of a text at most: what flows through all layers is held at once."""
_PRESS = "Press Look to have the model read this text: an address alone does not set it to work."
_CANONICAL = 100
"""The L0 that is nearest to this is read where a site has several SAEs of a width, as Gemma Scope chooses."""


async def layers(request: Request) -> Response:
    """A text through all layers."""
    name, asked = request.path_params["model"], await asked_of(request, Layers)
    links = ModelLinks(name)
    sources = [one for one in shelf_of(request).of(name) if _site(one) is not None]
    address = links.layers(**said(asked))
    if (elsewhere := shared(request, address)) is not None:
        return elsewhere
    chosen, kinds, widths = await run_in_threadpool(stack_of, sources, asked)
    seen, error = None, _why_not(sources, chosen)
    here = not asked.text or error is not None or pressed(request)
    if asked.text and error is None and here:
        try:
            seen = await ask(request, lambda job: _seen(job, chosen, asked), seconds=MEASURING)
        except GemscopeError as raised:
            error = " ".join(str(raised).split())
    status = 400 if error and chosen else 200
    if wants_data(request):
        found = {} if seen is None else {**seen.looks.to_dict(), "sources": [one.address[1] for one in chosen.values()]}
        pinned = {} if seen is None or seen.pinned is None else {"pinned": asked.pin, "values": seen.pinned}
        return data(request, {**found, **pinned, **({"error": error} if error else {})}, status=status)

    def made() -> Response:
        return page(
            request,
            "layers_result.html" if wants_part(request) else "layers.html",
            links=ServerLinks(),
            ways=links,
            status=status,
            headers=moved(request, address),
            model=name,
            asked=asked,
            kinds_there=kinds,
            widths=widths,
            kind=next(iter(chosen)).kind if chosen else "",
            width=next(iter(chosen.values())).manifest.d_sae if chosen else None,
            many=len(chosen),
            chats=any(one.live.chats for one in chosen.values()),
            live=bool(chosen),
            tries=[(links.layers(text=text), text) for text in TO_TRY],
            error=error,
            note="" if here else _PRESS,
            span=SPAN,
            **(_shown(seen, chosen, asked) if seen else {"seen": None}),
        )

    return await run_in_threadpool(made)


def _why_not(sources: Sequence[Source], chosen: Mapping[Site, Source]) -> str | None:
    if chosen:
        return None
    why = next((one.live.why for one in sources if not one.live.on), "")
    return f"No text can be read here: {why or 'no atlas of this model says which site it is of'}"


def _site(source: Source) -> Site | None:
    try:
        return Site.parse(source.manifest.site)
    except SiteNotFound:
        return None


def stack_of(sources: Sequence[Source], asked: Layers) -> tuple[dict[Site, Source], list[str], list[int]]:
    """An atlas for each layer, of one kind of site and as far as there are such of one width; and which kinds and
    widths there are to choose from.
    """
    by_kind: dict[str, dict[Site, list[Source]]] = defaultdict(lambda: defaultdict(list))
    for source in sources:
        site = _site(source)
        if site is not None and source.live.on:
            by_kind[site.kind][site].append(source)
    kinds = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))
    if not kinds:
        return {}, [], []
    there = by_kind[asked.kind if asked.kind in by_kind else kinds[0]]
    widths = Counter(width for some in there.values() for width in {one.manifest.d_sae for one in some})
    width = asked.width if asked.width in widths else max(widths, key=lambda one: (widths[one], -one))
    chosen = {}
    for site in sorted(there):
        some = [one for one in there[site] if one.manifest.d_sae == width] or there[site]
        chosen[site] = some[0] if len(some) == 1 else min(some, key=_from_canonical)
    return chosen, kinds, sorted(widths)


def _from_canonical(source: Source) -> float:
    found = scored(source)
    return float("inf") if found is None or found.l0 is None else abs(found.l0 - _CANONICAL)


@dataclass(frozen=True)
class _Seen:
    looks: Any
    pinned: list[float] | None
    hints: list[dict[int, str]]


class _SAEs(Mapping[Site, Any]):
    """Of the atlases, each loaded when it is asked for."""

    def __init__(self, job: Job[Any], chosen: Mapping[Site, Source]) -> None:
        self._job, self._chosen = job, chosen

    def __getitem__(self, site: Site) -> Any:
        return self._chosen[site].live.pair(self._job)[1]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)


class _Atlases(Mapping[Site, Any]):
    """The same of themselves."""

    def __init__(self, chosen: Mapping[Site, Source]) -> None:
        self._chosen = chosen

    def __getitem__(self, site: Site) -> Any:
        return self._chosen[site].atlas

    def __iter__(self) -> Iterator[Site]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)


def _seen(job: Job[Any], chosen: dict[Site, Source], asked: Layers) -> _Seen:
    from gemscope.app.live import given
    from gemscope.reports.looks import look_through

    first = next(iter(chosen.values()))
    model = first.live.pair(job)[0]
    tokens = model.tokens(given(asked.text, asked.chat))
    if tokens.ids.numel() > TOKENS:
        raise InputError(f"the text has {tokens.ids.numel():,} tokens: through all layers up to {TOKENS:,} are read")
    pinned = None
    if (pin := _pin(asked.pin, chosen)) is not None:
        pinned = pin[0].live.read(job, asked.text, features=[pin[1]], chat=asked.chat).of(pin[1], every_token=False)
    with model.watched(job.check):
        looks = look_through(
            model, _SAEs(job, chosen), tokens, k=asked.k, atlases=_Atlases(chosen), foremost=1, check=job.check
        )
    part = slice(asked.start, asked.start + SPAN)
    hints = []
    for one, source in zip(looks, chosen.values(), strict=True):
        shown = [
            token for token in one.tokens if token.position == asked.at or part.start <= token.position < part.stop
        ]
        bare = {each.feature for token in shown for each in token.features if each.label is None}
        hints.append(source.atlas.strongest_on(bare))
    return _Seen(looks, pinned, hints)


def _pin(pin: str, chosen: Mapping[Site, Source]) -> tuple[Source, int] | None:
    """SAE/FEATURE. Raises InputError for what is none here."""
    if not pin:
        return None
    name, _, number = pin.rpartition("/")
    source = next((one for one in chosen.values() if one.address[1] == name), None)
    if source is None or not number.isascii() or not number.isdecimal():
        raise InputError(f"pin={pin[:80]!r}: expected SAE/FEATURE, of an SAE that is read here")
    if int(number) >= source.manifest.d_sae:
        raise InputError(f"no feature {number[:12]}: {name} has features 0 to {source.manifest.d_sae - 1}")
    return source, int(number)


def _shown(seen: _Seen, chosen: Mapping[Site, Source], asked: Layers) -> dict[str, Any]:
    sources = list(chosen.values())
    pin = _pin(asked.pin, chosen)
    tokens = seen.looks.tokens
    part = slice(asked.start, asked.start + SPAN)
    keys = [one.address[1] for one in sources]
    urls = [(one.links.source(), one.links.feature) for one in sources]
    at = asked.at if asked.at is not None and asked.at < len(tokens) else None
    return {
        "seen": seen,
        "rows": rows_of(
            seen.looks,
            part=part,
            keys=keys,
            urls=urls,
            hints=seen.hints,
            pin=pin and (pin[0].address[1], pin[1]),
        ),
        "tokens": tokens,
        "part": tokens[part],
        "at": at,
        "one": []
        if at is None
        else list(zip(sources, (one.tokens[at] for one in seen.looks), seen.hints, strict=True)),
        "pin": pin,
        "label": pin and pin[0].atlas.meanings([pin[1]]).get(pin[1]),
    }
