"""The map of an atlas as its page has it: places, names over them, and what is said of each feature, by tiles."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.pages.charts import plane
from gemscope.pages.labels import said

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Points:
    """Of an atlas that has a map; made anew when a label changes."""

    atlas: Atlas
    places: np.ndarray[Any, np.dtype[np.uint16]]
    """[F, 2]"""
    right: Array
    """[F] how far each label is right."""
    figures: tuple[Array, Array]
    """[F] densities and maxima."""

    @cached_property
    def labels(self) -> dict[int, str]:
        """Of all features that have one."""
        return self.atlas.labels(range(len(self.places)))

    @cached_property
    def regions(self) -> list[plane.Region]:
        """Names over it."""
        return plane.regions(self.places, self.figures[0], self.right, self.labels)

    @cached_property
    def tiles(self) -> Array:
        """[F] the tile that each lies in."""
        return plane.tiles(self.places)

    @cached_property
    def bytes(self) -> bytes:
        """What the script draws."""
        labelled = np.zeros(len(self.places), np.bool_)
        labelled[list(self.labels)] = True
        return plane.encoded(self.places, *self.figures, self.right, labelled)

    @cached_property
    def digest(self) -> str:
        """Part of addresses, so that a browser may keep what lies there."""
        labels = "\0".join(f"{one} {label}" for one, label in sorted(self.labels.items()))
        return f"{zlib.crc32(self.bytes):08x}{zlib.crc32(labels.encode('utf-8', 'replace')):08x}"

    def tile(self, number: int) -> dict[str, dict[str, str]]:
        """Labels of the features in a tile; where there is none, the token that the feature fires on most."""
        here = np.flatnonzero(self.tiles == number).tolist()
        labels = {one: self.labels[one] for one in here if one in self.labels}
        tokens = self.atlas.strongest_on(one for one in here if one not in labels)
        return {
            "labels": {str(one): said(label)[:200] for one, label in labels.items()},
            "tokens": {str(one): token[:60] for one, token in tokens.items()},
        }
