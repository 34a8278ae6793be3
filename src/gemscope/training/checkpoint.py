"""The state of a run on disk: whole or not there at all.

RUN/state-00001500/tensors.safetensors, state.json     older ones are removed when a newer is in place

Of N ranks each writes tensors-00001-of-0000N.safetensors and so on, its own features' rows, which its metadata names as
`features` r::N; any number of ranks goes on from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gemscope.checked import as_read, checksum_of, read_json, read_tensors
from gemscope.disk import aside_of, claimed, room
from gemscope.errors import CorruptFile, NotFound
from gemscope.training.deal import Deal
from gemscope.training.group import ALONE, Group
from gemscope.training.weights import alike

KEPT = "the run can go on from its last checkpoint: free some room and start it again"
"""What a full disk leaves of a run."""


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 1,
    group: Group = ALONE,
) -> None:
    """Writes beside, moves into place, then drops all but the `keep` newest; of a group the first rank does, and each
    writes its own tensors. Raises StorageFull: older ones stay.
    """
    whole = run / f"state-{step:08d}"
    with _claimed_together(whole, group) as place, room(run, place, kept=KEPT):
        aside = place / whole.name
        if group.first:
            aside.mkdir()
        group.barrier()
        own = {name: tensor.contiguous() for name, tensor in tensors.items()}
        file, facts = _file(group.rank, group.size), _facts(group.rank, group.size)
        save_file(own, aside / file, facts or None)
        sums = group.gather(torch.tensor([int(checksum_of(own, facts), 16)]), even=True)
        if group.first:
            said = as_read({"step": step, **state})
            if group.size > 1:
                said["ranks"] = [f"{int(one):08x}" for one in sums]
                own = {}
            said["checksum"] = checksum_of(own, said)
            (aside / "state.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
            if whole.exists():
                os.replace(whole, place / "before")
            os.replace(aside, whole)
        group.barrier()
    if group.first:
        rotate(run, keep)


@contextmanager
def _claimed_together(whole: Path, group: Group) -> Iterator[Path]:
    """The folder that the first rank has claimed."""
    if group.first:
        with claimed(whole) as place:
            yield place
    else:
        yield aside_of(whole)


def _file(rank: int, size: int) -> str:
    return "tensors.safetensors" if size == 1 else f"tensors-{rank + 1:05d}-of-{size:05d}.safetensors"


def _facts(rank: int, size: int) -> dict[str, str]:
    return {} if size == 1 else {"features": f"{rank}::{size}"}


def rotate(run: Path, keep: int) -> None:
    """Drops all checkpoints but the `keep` newest."""
    for path in _states(run)[:-keep]:
        shutil.rmtree(path)


def newest(run: Path, deal: Deal | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint, or None; with a `deal` this rank's rows, however many ranks wrote it.
    Raises CorruptFile.
    """
    states = _states(run)
    if not states:
        return None
    path = states[-1]
    try:
        state = read_json(path / "state.json", dict[str, Any])
        said, sums = state.pop("checksum", None), state.get("ranks", [None])
        if not isinstance(sums, list) or not sums:
            raise CorruptFile("its ranks are no list")
        tensors: dict[str, Tensor] = {}
        for rank, told in enumerate(sums):
            found, facts = read_tensors(path / _file(rank, len(sums)))
            if len(sums) == 1:
                whole = checksum_of(found, state) == said
            else:
                facts_fit = facts == _facts(rank, len(sums)) and checksum_of({}, state) == said
                whole = facts_fit and checksum_of(found, facts) == told
            if not whole:
                raise CorruptFile("its checksum is another")
            _take(tensors, found, (rank, len(sums)), deal)
    except (CorruptFile, NotFound) as error:
        raise damaged(run, error) from error
    state.pop("ranks", None)
    return tensors, state


def _take(tensors: dict[str, Tensor], found: Mapping[str, Tensor], dealt: tuple[int, int], deal: Deal | None) -> None:
    """Adds to `tensors` what the file of a rank, `dealt` its number and how many there were, has of a deal's rows."""
    rank, of = dealt
    # Of its own from here on: the file goes when a newer checkpoint is in its place.
    for name, part in found.items():
        if alike(name) or (of == 1 and (deal is None or deal.group.size == 1)):
            tensors.setdefault(name, part.clone())
            continue
        if deal is None:
            raise CorruptFile(f"it is of {of} ranks: to be read with the settings that it was trained with")
        mine, step = deal.group.rank, deal.group.size
        rows = torch.arange(len(part)) * of + rank
        chosen = rows % step == mine
        whole = tensors.setdefault(name, part.new_zeros(deal.held, *part.shape[1:]))
        at = rows[chosen] // step
        if part.shape[1:] != whole.shape[1:] or (len(at) and int(at.max()) >= deal.held):
            raise CorruptFile(f"{name} is of another shape than with other ranks")
        whole[at] = part[chosen]


def damaged(run: Path, why: object) -> CorruptFile:
    """Of a run's newest checkpoint."""
    return CorruptFile(f"the checkpoint {_states(run)[-1]} is damaged: {why}; remove it to start over")


def _states(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("state-*") if path.is_dir())
