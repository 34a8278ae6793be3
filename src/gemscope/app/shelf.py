"""The atlases that are served, by the addresses of their pages."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.app.live import Live, Loaded
from gemscope.app.opened import FEW, Opened, Room
from gemscope.atlas.dashboard import Dashboard, Related, Summary
from gemscope.atlas.files.manifest import IMPORTED, Manifest, read_manifest
from gemscope.atlas.files.schema import NAME
from gemscope.atlas.labels.explanations import Standing
from gemscope.atlas.load import located
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError, NotFound
from gemscope.pages.charts.scatter import Cells
from gemscope.pages.links import ServerLinks
from gemscope.pages.render import sae_of
from gemscope.reports.grid import Placed

MANIFEST = "manifest.json"
OURS = frozenset({"api", "compare", "favicon.ico", "health", "lists", "queue", "search", "static"})
"""First parts of addresses that no model can have."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=~-]{0,199}")
SAELENS = "cfg.json"
"""In a folder that holds an SAE."""
_L0 = re.compile(r"average_l0_([0-9]{1,9})")
_DIGITS = re.compile(r"([0-9]+)")
_FOLDERS = 20_000
"""Looked through for atlases at most."""
_PAGES = frozenset({"search", "prompt", "steer", "attribute", "compare", "random", "map"})


@dataclass(frozen=True, eq=False)
class Source:
    """One atlas: its pages lie at `/{model_id}/{source_id}` of this manifest, which may differ from the atlas's own."""

    folder: Path
    manifest: Manifest
    live: Live
    opened: Callable[[], Opened]
    """Opens the atlas where it is not open."""
    at_hand: Callable[[], Opened | None]
    """None where it is not."""
    scores: dict[int, Any] = field(default_factory=dict)
    """Output scores by feature, where they cannot be kept with the atlas."""

    @property
    def address(self) -> tuple[str, str]:
        """Model and source, as in the address of its pages."""
        return self.manifest.model_id, self.manifest.source_id

    @property
    def named(self) -> Manifest:
        """The manifest with an SAE that this machine has: one beside the atlas goes with it wherever both are moved."""
        beside = self.folder.parent
        return replace(self.manifest, sae=str(beside)) if (beside / SAELENS).is_file() else self.manifest

    @cached_property
    def links(self) -> ServerLinks:
        """To its pages."""
        return ServerLinks(*self.address)

    @property
    def atlas(self) -> Atlas:
        """Opened now, where it is not open. Raises what `Atlas` raises."""
        return self.opened().atlas

    @property
    def dead(self) -> int:
        """How many features fired nowhere."""
        return self.opened().dead

    @property
    def living(self) -> int:
        """How many fired somewhere."""
        return self.manifest.d_sae - self.dead

    @property
    def standing(self) -> Standing:
        """How many features have a label, and how good those are."""
        return self.atlas.standing

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, densities and maxima of the living features."""
        return self.opened().points

    @property
    def cells(self) -> Cells | None:
        """The points as a chart has them; None where no feature fired."""
        return self.opened().cells

    @property
    def median_norm(self) -> float | None:
        """What the atlas's activations and lengths are shares of, where that is known."""
        return None if IMPORTED in self.manifest.options else self.atlas.manifest.median_norm

    @property
    def maps(self) -> dict[str, Any]:
        """The map of all features as its page has it, under `now`."""
        return self.opened().maps

    @property
    def striking(self) -> list[int]:
        """A few features to begin with."""
        return self.opened().striking

    def warm(self) -> None:
        """Gathers what lists and pages need first: else the first readers would wait for it."""
        self.opened().warm()

    @property
    def figures(self) -> tuple[np.ndarray, np.ndarray]:
        """Densities and maxima [d_sae]."""
        return self.opened().figures

    def denser_than(self, density: float) -> np.ndarray | None:
        """[d_sae] which features fire on a greater share of tokens; None where the limit is negative: no limit."""
        if density < 0:
            return None
        return self.figures[0] > density

    def summary(self, index: int) -> Summary:
        """One feature as a line of a list."""
        return summarised(self.atlas[index])

    def __getitem__(self, index: int) -> Dashboard:
        """One feature, as from this address. Raises NotFound."""
        return self.dashboard(index)

    def dashboard(self, index: int, *, ranges: bool = True) -> Dashboard:
        """The same, without the examples of its ranges where these are not asked for. Raises NotFound."""
        found = self.atlas.dashboard(index, ranges=ranges)
        if (found.model, found.source) == self.address:
            return found
        return replace(found, model=self.manifest.model_id, source=self.manifest.source_id)


def summarised(one: Dashboard) -> Summary:
    """A whole page as a line of a list."""
    token = one.examples[0].tokens[one.examples[0].peak] if one.examples else None
    return Summary(one.index, one.count, one.density, one.max, one.mean, one.label, token)


class Shelf:
    """Sources by (model, source), in the order in which they were given."""

    def __init__(self, sources: Iterable[Source], room: Room) -> None:
        self._sources = {source.address: source for source in sources}
        self._room = room
        self.unread: Mapping[str, Sequence[Placed]] = {}
        """By model, SAEs with a score and without an atlas."""
        self._by_digest = {one.manifest.sae_digest: one for one in self if one.manifest.sae_digest}

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources.values())

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def first(self) -> list[Source]:
        """Those that are seen to as soon as they are served: all of a few, and the first of many."""
        return list(self)[: len(self) if len(self) <= FEW else 1]

    def of(self, model: str) -> list[Source]:
        """Those of one model. Raises NotFound."""
        found = [source for source in self if source.manifest.model_id == model]
        if not found:
            raise NotFound(f"no atlas of a model {model[:80]!r} is served here")
        return found

    def resolved(self, dashboard: Dashboard) -> Dashboard:
        """With addresses and what is known by now of its relatives at other sites, where their atlases are here too."""
        return replace(dashboard, related=[self._resolved(one) for one in dashboard.related])

    def _resolved(self, one: Related) -> Related:
        source = self._by_digest.get(one.digest)
        if source is None:
            return one
        found = replace(one, source="/".join(source.address), pages=source.links.source())
        if (opened := source.at_hand()) is None and one.source:
            return found  # what it said when they were put in will do: no page waits for another atlas
        known = (opened or source.opened()).atlas.meanings(two.feature for two in one.features)
        return replace(found, features=[replace(two, label=known.get(two.feature)) for two in one.features])

    def get(self, model: str, source: str) -> Source:
        """Raises NotFound."""
        found = self._sources.get((model, source))
        if found is None:
            raise NotFound(f"no atlas {source[:80]!r} of model {model[:80]!r} is served here")
        return found

    def close(self) -> None:
        """Closes the atlases that were opened here."""
        self._room.close()


def shelf(atlases: Iterable[Atlas | Path], *, off: str | None = None, room: Room | None = None) -> Shelf:
    """Atlases by address; those of one address are told apart by their L0s or their SAEs' digests. Folders are opened
    when they are read: a few now, so that what is wrong with them is said at once. `off`: no live reading, and why.

    Raises InputError where there are none, and for names that can be no address; what `Atlas` raises.
    """
    sources: list[Source] = []
    taken: dict[tuple[str, str], int] = defaultdict(int)
    given, room, loaded = list(atlases), room or Room(), Loaded()
    try:
        for one in given:
            folder = one.folder if isinstance(one, Atlas) else one
            own = partial(_itself, Opened(one)) if isinstance(one, Atlas) else None
            opened: Callable[[], Opened] = own or partial(room.open, folder)
            at_hand: Callable[[], Opened | None] = own or partial(room.at_hand, folder)
            early = own is not None or len(given) <= FEW or not sources
            manifest = opened().atlas.manifest if early else read_manifest(folder)
            for name in (manifest.model_id, manifest.source_id):
                ours = name.endswith(".json") or manifest.model_id in OURS or manifest.source_id in _PAGES
                if not _NAME.fullmatch(name) or ours:
                    raise InputError(
                        f"{name[:80]!r} cannot be part of an address: the atlas's model_id and source_id are made of "
                        "letters, digits and _ . + @ = ~ -"
                    )
            manifest = replace(manifest, source_id=_free(manifest, folder, taken))
            sources.append(Source(folder, manifest, Live(off, loaded), opened, at_hand))
        if not sources:
            raise InputError("no atlas given: name the folder of one")
    except BaseException:
        room.close()
        raise
    return Shelf(sources, room)


def _itself(opened: Opened) -> Opened:
    return opened


def _free(manifest: Manifest, folder: Path, taken: dict[tuple[str, str], int]) -> str:
    """Its source id, or one that nobody has yet: Neuronpedia parts a suffix by two underscores, too, and puts the L0
    there.
    """
    name, digest = manifest.source_id, manifest.sae_digest[:6]
    l0 = next((found[1] for part in reversed(folder.parts) if (found := _L0.fullmatch(part))), None)
    for candidate in (name, *([f"{name}__l0-{l0}"] if l0 else []), f"{name}__{digest}"):
        taken[manifest.model_id, candidate] += 1
        if (count := taken[manifest.model_id, candidate]) == 1:
            return candidate
    return f"{name}__{digest}-{count}"


def short_names(sources: Iterable[Source]) -> dict[tuple[str, str], str]:
    """SAEs by address in few characters, 15.res 8k; with their ids where else two would be called the same."""
    short = {source.address: sae_of(source.manifest) for source in sources}
    often = Counter((model, name) for (model, _), name in short.items())
    return {
        (model, source): f"{name} · {source}" if often[model, name] > 1 else name
        for (model, source), name in short.items()
    }


def folders(given: str | os.PathLike[str]) -> list[Path]:
    """The atlas that a folder is, or those that lie in it, however deep: layer 2 before layer 10. Raises NotFound."""
    folder = located(given).expanduser()
    if (folder / MANIFEST).is_file():
        return [folder]
    if within := sorted(_below(folder), key=_naturally):
        return within
    raise NotFound(
        f"no atlas at {folder}: expected a folder that `gemscope describe` made, or one that holds such folders"
    )


def _below(folder: Path) -> Iterator[Path]:
    """Raises NotFound where there is too much to look through."""
    seen = set[tuple[int, int]]()
    for top, within, files in os.walk(folder, followlinks=True):
        if MANIFEST in files and (NAME in files or Path(top).parent == folder):
            yield Path(top)
            within.clear()
            continue
        place = os.stat(top)
        again = (place.st_dev, place.st_ino) in seen  # a link to a folder around it
        seen.add((place.st_dev, place.st_ino))
        if len(seen) > _FOLDERS:
            raise NotFound(f"more than {_FOLDERS:,} folders below {folder}: name the folder that holds the atlases")
        within[:] = [] if again else [one for one in within if not one.startswith(".")]


def _naturally(path: Path) -> list[tuple[int, str]]:
    """Numbers in names by their size."""
    return [(int(part) if part.isdecimal() else -1, part) for part in _DIGITS.split(str(path)) if part]
