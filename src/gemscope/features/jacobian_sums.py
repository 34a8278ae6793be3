"""What an effect is the mean of, while it is measured: sums for each half of the text, and the file in which they wait
where measuring was stopped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.jacobian import Jacobian
from gemscope.checked import Count, Form, as_read, require_forms
from gemscope.disk import claimed, room, synced
from gemscope.errors import NotFound
from gemscope.features.sealed import require_same, seal, unsealed
from gemscope.shapes import Float

_NAME, _REMEDY = "gemscope_unfinished_effect", "remove it to begin anew"


class Sums:
    """Over rows of text that belong to two halves in turn, in float64: the same however often they lay on the disk."""

    def __init__(self) -> None:
        self.rows = 0
        """Read so far."""
        self.counts = [0, 0]
        """Tokens in each half."""
        self.dropped = Counter[str]()
        self.tensors: dict[str, Float[Tensor, "halves H O"]] = {}
        """`this` and `later`."""

    def add(self, rows: int, halves: Sequence[Jacobian]) -> None:
        """What a batch of rows gave."""
        for part in ("this", "later"):
            found = torch.stack([getattr(one, part) for one in halves])
            self.tensors[part] = self.tensors[part] + found if part in self.tensors else found
        for half, one in enumerate(halves):
            self.counts[half] += one.n
            self.dropped.update(one.dropped)
        self.rows += rows

    def mean(self, part: str) -> Float[Tensor, "halves H O"]:
        """Of each half, in float32."""
        return (self.tensors[part] / torch.tensor(self.counts, dtype=torch.float64)[:, None, None]).float()


class Unfinished:
    """FILE.partial: the sums of an effect that will be FILE, replaced as a whole after each batch of rows."""

    def __init__(self, path: Path, place: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._place, self._settings = path, place, as_read(settings)

    def resumed(self, width: tuple[int, int]) -> Sums:
        """Where an earlier attempt stopped, or the beginning. Raises InputError for one with other settings,
        CorruptFile.
        """
        sums = Sums()
        try:
            said, tensors = unsealed(_NAME, self._path, _Said, lacking="is damaged", remedy=_REMEDY)
        except NotFound:
            return sums
        require_same(said.settings, self._settings, f"{self._path} holds an unfinished effect measured")
        require_forms(
            tensors, {part: Form((2, *width), "float64") for part in ("this", "later")}, where=str(self._path)
        )
        sums.rows, sums.counts, sums.dropped = said.rows, list(said.counts), Counter(said.dropped)
        # Out of the file that will be replaced.
        sums.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return sums

    def save(self, sums: Sums) -> None:
        """In place of what was there. Raises StorageFull, FileError."""
        from safetensors.torch import save_file

        said = {"settings": self._settings, "rows": sums.rows, "counts": sums.counts, "dropped": sums.dropped}
        aside = self._place / self._path.name
        with room(self._path, self._place):
            save_file(sums.tensors, aside, seal(_NAME, sums.tensors, said))
            synced(aside)
            os.replace(aside, self._path)

    def discard(self) -> None:
        """What it was for is done."""
        self._path.unlink(missing_ok=True)


@contextmanager
def unfinished(file: Path, settings: Mapping[str, Any]) -> Iterator[Unfinished]:
    """What was begun to be FILE, while nobody else is at it. Raises AccessError where another process is, FileError."""
    path = file.with_name(file.name + ".partial")
    with claimed(path) as place:
        yield Unfinished(path, place, settings)


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What stands beside the sums."""

    settings: dict[str, Any]
    rows: Count
    counts: tuple[Count, Count]
    dropped: dict[str, Count]
