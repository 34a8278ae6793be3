"""The state of a run on disk: whole or not there at all.

RUN/state-00001500/tensors.safetensors, state.json     older ones are removed when a newer is in place
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gemscope.checked import as_read, checksum_of, read_json, read_tensors
from gemscope.disk import claimed, room
from gemscope.errors import CorruptFile, NotFound

KEPT = "the run can go on from its last checkpoint: free some room and start it again"
"""What a full disk leaves of a run."""


def save(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 1) -> None:
    """Writes beside, moves into place, then drops all but the `keep` newest. Raises StorageFull: older ones stay."""
    whole = run / f"state-{step:08d}"
    with claimed(whole) as place, room(run, place, kept=KEPT):
        aside = place / whole.name
        aside.mkdir()
        whole_tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole_tensors, aside / "tensors.safetensors")
        said = as_read({"step": step, **state})
        said["checksum"] = checksum_of(whole_tensors, said)
        (aside / "state.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        if whole.exists():
            os.replace(whole, place / "before")
        os.replace(aside, whole)
    rotate(run, keep)


def rotate(run: Path, keep: int) -> None:
    """Drops all checkpoints but the `keep` newest."""
    for path in _states(run)[:-keep]:
        shutil.rmtree(path)


def newest(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint, or None. Raises CorruptFile."""
    states = _states(run)
    if not states:
        return None
    path = states[-1]
    try:
        state = read_json(path / "state.json", dict[str, Any])
        tensors, _ = read_tensors(path / "tensors.safetensors")
        if state.pop("checksum", None) != checksum_of(tensors, state):
            raise CorruptFile("its checksum is another")
    except (CorruptFile, NotFound) as error:
        raise damaged(run, error) from error
    # Of its own from here on: the file goes when a newer checkpoint is in its place.
    return {name: tensor.clone() for name, tensor in tensors.items()}, state


def damaged(run: Path, why: object) -> CorruptFile:
    """Of a run's newest checkpoint."""
    return CorruptFile(f"the checkpoint {_states(run)[-1]} is damaged: {why}; remove it to start over")


def _states(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("state-*") if path.is_dir())
