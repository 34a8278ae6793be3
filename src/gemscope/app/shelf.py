"""The atlases that are served, by the addresses of their pages."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.app.live import Live
from gemscope.atlas.dashboard import Dashboard, Summary
from gemscope.atlas.files.manifest import IMPORTED, Manifest
from gemscope.atlas.labels.explanations import Standing
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError, NotFound
from gemscope.pages.charts.scatter import Cells, gathered
from gemscope.pages.links import ServerLinks

MANIFEST = "manifest.json"
OURS = frozenset({"api", "compare", "favicon.ico", "health", "lists", "queue", "search", "static"})
"""First parts of addresses that no model can have."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=~-]{0,199}")
_PAGES = frozenset({"search", "prompt", "steer", "attribute", "compare", "random", "map"})


@dataclass(frozen=True)
class Source:
    """One atlas: its pages lie at `/{model_id}/{source_id}` of this manifest, which may differ from the atlas's own."""

    atlas: Atlas
    manifest: Manifest
    live: Live

    @property
    def address(self) -> tuple[str, str]:
        """Model and source, as in the address of its pages."""
        return self.manifest.model_id, self.manifest.source_id

    @cached_property
    def links(self) -> ServerLinks:
        """To its pages."""
        return ServerLinks(*self.address)

    @cached_property
    def dead(self) -> int:
        """How many features fired nowhere."""
        return self.atlas.count(dead=True)

    @property
    def living(self) -> int:
        """How many fired somewhere."""
        return len(self.atlas) - self.dead

    @property
    def standing(self) -> Standing:
        """How many features have a label, and how good those are."""
        return self.atlas.standing

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`Atlas.scatter`: what labels say does not change it."""
        return self.atlas.scatter()

    @cached_property
    def cells(self) -> Cells | None:
        """The points as a chart has them; None where no feature fired."""
        return gathered(*self.points)

    @property
    def median_norm(self) -> float | None:
        """What the atlas's activations and lengths are shares of, where that is known."""
        return None if IMPORTED in self.manifest.options else self.atlas.manifest.median_norm

    @cached_property
    def maps(self) -> dict[str, Any]:
        """The map of all features as its page has it, under `now`."""
        return {}

    @cached_property
    def scores(self) -> dict[int, Any]:
        """Output scores by feature: each takes some passes of the model, and stays as it is."""
        return {}

    @cached_property
    def striking(self) -> list[int]:
        """A few features to begin with."""
        return [one.feature for one in self.atlas.striking()]

    def warm(self) -> None:
        """Gathers what lists and pages need first: else the first readers would wait for it."""
        self.atlas.summaries(limit=1)
        if len(self.atlas):
            self.atlas[0]
        _ = self.cells, self.dead, self.striking

    @cached_property
    def figures(self) -> tuple[np.ndarray, np.ndarray]:
        """Densities and maxima [d_sae]."""
        features, *figures = self.points
        whole = np.zeros((2, len(self.atlas)))
        whole[:, features] = figures
        return whole[0], whole[1]

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

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = {source.address: source for source in sources}

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources.values())

    def __len__(self) -> int:
        return len(self._sources)

    def of(self, model: str) -> list[Source]:
        """Those of one model. Raises NotFound."""
        found = [source for source in self if source.manifest.model_id == model]
        if not found:
            raise NotFound(f"no atlas of a model {model[:80]!r} is served here")
        return found

    def get(self, model: str, source: str) -> Source:
        """Raises NotFound."""
        found = self._sources.get((model, source))
        if found is None:
            raise NotFound(f"no atlas {source[:80]!r} of model {model[:80]!r} is served here")
        return found


def shelf(atlases: Iterable[Atlas], *, off: str | None = None) -> Shelf:
    """Atlases by address; those of one address are told apart by their SAEs' digests. `off`: no live reading, and why.

    Raises InputError where there are none, and for names that can be no address.
    """
    sources: list[Source] = []
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for atlas in atlases:
        manifest = atlas.manifest
        for name in (manifest.model_id, manifest.source_id):
            ours = name.endswith(".json") or manifest.model_id in OURS or manifest.source_id in _PAGES
            if not _NAME.fullmatch(name) or ours:
                raise InputError(
                    f"{name[:80]!r} cannot be part of an address: the atlas's model_id and source_id are made of "
                    "letters, digits and _ . + @ = ~ -"
                )
        manifest = replace(manifest, source_id=_free(manifest, taken))
        sources.append(Source(atlas, manifest, Live(off)))
    if not sources:
        raise InputError("no atlas given: name the folder of one")
    return Shelf(sources)


def _free(manifest: Manifest, taken: dict[tuple[str, str], int]) -> str:
    """Its source id, or one that nobody has yet: Neuronpedia parts a suffix by two underscores, too."""
    name = manifest.source_id
    for candidate in (name, f"{name}__{manifest.sae_digest[:6]}"):
        taken[manifest.model_id, candidate] += 1
        if (count := taken[manifest.model_id, candidate]) == 1:
            return candidate
    return f"{name}__{manifest.sae_digest[:6]}-{count}"


def folders(given: str | os.PathLike[str]) -> list[Path]:
    """The atlas that a folder is, or those that lie in it. Raises NotFound."""
    folder = Path(given).expanduser()
    if (folder / MANIFEST).is_file():
        return [folder]
    if within := sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")):
        return within
    raise NotFound(
        f"no atlas at {folder}: expected a folder that `gemscope describe` made, or one that holds such folders"
    )
