"""Published SAEs: which of them fit what is asked for. What their names say is `published.py`'s.

The bundled snapshot answers without a network; the Hub, where it can be reached, says what is there today.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import overload

from gemscope.activations.site import Site
from gemscope.errors import HubUnreachable, InputError, ModelNotFound, SAENotFound
from gemscope.features.entry import Entry
from gemscope.features.published import parse_files, snapshot, width_of


@dataclass(frozen=True)
class Catalog(Sequence[Entry]):
    """Entries, and where the list comes from."""

    entries: tuple[Entry, ...]
    source: str
    """One line: the Hub, or the bundled snapshot and why."""

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Catalog: ...
    def __getitem__(self, index: int | slice) -> Entry | Catalog:
        if isinstance(index, slice):
            return replace(self, entries=self.entries[index])
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)


def catalog(
    model: str | None = None,
    *,
    site: Site | str | None = None,
    layer: int | None = None,
    width: int | str | None = None,
    l0: float | int | str | tuple[float | int, float | int] | None = None,
    canonical: bool | None = None,
    affine: bool | None = None,
    generation: int | None = None,
    online: bool | None = None,
    token: str | bool | None = None,
) -> Catalog:
    """The published SAEs that fit every filter given, ordered by model, site, width and L0.

    `model` is `gemma-2-2b` or `google/gemma-2-2b`; `site` a kind (`res`; `transcoder` means both kinds of transcoder
    input) or a place (`20.res`); `width` a label (`16k`) or a number; `l0` a number, a label (`medium`) or a range
    `(50, 150)`. `online=None` asks the Hub and takes the bundled snapshot when it does not answer; True insists,
    False does not ask. `.source` of the result says which it was.

    Raises ModelNotFound for a model that no published SAE reads, InputError for a width, site or label that does not
    exist, HubUnreachable with `online=True`.
    """
    kind, layer = _place(site, layer)
    n_features = None if width is None else width_of(width)
    low, high, label = _range(l0)
    known = snapshot()
    if model is not None:
        model = _model_id(model, known)
    wanted = [entry for entry in known if model in (None, entry.model)]
    listed = _listed(wanted, online=online, token=token)

    def fits(entry: Entry) -> bool:
        return (
            (
                kind is None
                or (entry.site is not None and entry.site.kind == kind)
                or (entry.site is not None and kind == "transcoder" and entry.site.kind == "transcoder_nogain")
            )
            and layer in (None, entry.layer)
            and n_features in (None, entry.width)
            and label in (None, entry.l0_label)
            and (low is None or high is None or (entry.l0 is not None and low <= entry.l0 <= high))
            and canonical in (None, entry.canonical)
            and affine in (None, entry.affine)
            and generation in (None, entry.generation)
        )

    return replace(listed, entries=tuple(sorted(filter(fits, listed), key=order)))


def order(entry: Entry) -> tuple[str, Site, int, int, str, str]:
    """What entries are sorted by."""
    place = _EMBED if entry.site is None else entry.site
    return entry.model, place, entry.width or 0, entry.l0 or 0, entry.repo, entry.path


_EMBED = Site(None, "embed")


def _place(site: Site | str | None, layer: int | None) -> tuple[str | None, int | None]:
    if site is None:
        return None, layer
    if isinstance(site, str) and "." not in site:
        # Any layer serves to have the kind's name checked.
        return (site if site == "embed" else Site(0, site).kind), layer
    place = Site.parse(site)
    if layer not in (None, place.layer):
        raise InputError(f"site {str(place)!r} and layer {layer} contradict each other: give one of them")
    return place.kind, place.layer


def _range(
    l0: float | int | str | tuple[float | int, float | int] | None,
) -> tuple[float | None, float | None, str | None]:
    """Lowest, highest, label."""
    match l0:
        case None:
            return None, None, None
        case (low, high):
            return float(low), float(high), None
        case str() if l0 in ("small", "medium", "big"):
            return None, None, l0
    try:
        return float(l0), float(l0), None
    except ValueError:
        raise InputError(f"{l0!r} is no L0: give a number, a range, or small, medium or big") from None


def _model_id(model: str, known: Iterable[Entry]) -> str:
    """The full id, of one with the owner or without, or as Neuronpedia has it."""
    known = list(known)
    names = {entry.neuronpedia_id.split("/", 1)[0]: entry.model for entry in known if entry.neuronpedia_id}
    names |= {entry.model.split("/", 1)[1]: entry.model for entry in known}
    models = {entry.model for entry in known}
    if model in models:
        return model
    if model not in names:
        raise ModelNotFound(f"no published SAE reads {model!r}: the models are {', '.join(sorted(models))}")
    return names[model]


# --- the Hub --------------------------------------------------------------------------------------------------------

_SNAPSHOT = "the bundled snapshot"


def _listed(wanted: Sequence[Entry], *, online: bool | None, token: str | bool | None) -> Catalog:
    """What the Hub lists today in the repositories of the entries wanted, or those entries themselves."""
    if online is False:
        return Catalog(tuple(wanted), _SNAPSHOT)
    from gemscope.activations import hub

    repos = sorted({entry.repo for entry in wanted})
    try:
        hub.reach()
        with ThreadPoolExecutor(min(8, len(repos))) as pool:
            listings = list(pool.map(hub.Access(token=token).files, repos))
    except (HubUnreachable, SAENotFound) as error:
        if online:
            raise
        return Catalog(tuple(wanted), f"{_SNAPSHOT} ({error})")
    entries = [entry for repo, names in zip(repos, listings, strict=True) for entry in parse_files(repo, names)]
    return Catalog(tuple(entries), "the Hugging Face Hub")
