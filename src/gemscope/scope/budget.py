"""What there is to make a scope with: bytes of disk and memory, given or found free."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gemscope.activations.suited import free_memory
from gemscope.checked import shown
from gemscope.errors import InputError
from gemscope.world import World

_FREE = 0.8
"""Of what is free, where no budget is given."""
_UNKNOWN = 1 << 50
"""Bytes of memory where the system does not say how much there is."""
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(?:([kmgt])?(i)?b?)?\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes, and who shares them."""

    disk: int
    """The finished SAEs among them."""
    memory: int
    """Of all workers on this machine together."""
    workers: int = 1

    @property
    def memory_each(self) -> int:
        """Of one worker."""
        return self.memory // self.workers


def budget_of(to: Path, disk: int | str | None, memory: int | str | None, world: World) -> Budget:
    """As given, such as "50GB"; else four fifths of what is free where `to` will be. Raises InputError."""
    there = next(folder for folder in to.absolute().parents if folder.exists())
    free = free_memory()
    return Budget(
        disk=int(_FREE * shutil.disk_usage(there).free) if disk is None else bytes_in(disk),
        memory=bytes_in(memory) if memory is not None else _UNKNOWN if free is None else int(_FREE * free),
        workers=world.size,
    )


def bytes_in(text: str | int) -> int:
    """50GB, 1.5 TB, 512MiB, or a number of bytes. Raises InputError."""
    found = _SIZE.fullmatch(str(text))
    if found is None:
        raise InputError(f"{shown(text, 40)!r} is no size: expected a number of bytes, such as 50GB or 16GiB")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " kmgt".index((found[2] or " ").lower()))
