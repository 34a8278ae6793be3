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

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemscope.disk import claimed, room
from gemscope.errors import CorruptFile

KEPT = "the run can go on from its last checkpoint: free some room and start it again"
"""What a full disk leaves of a run."""


def save(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 1) -> None:
    """Writes beside, moves into place, then drops all but the `keep` newest. Raises StorageFull: older ones stay."""
    whole = run / f"state-{step:08d}"
    with claimed(whole) as place, room(run, place, kept=KEPT):
        aside = place / whole.name
        aside.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / "tensors.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=1) + "\n")
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
    try:
        state = json.loads((states[-1] / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError("state.json holds no settings")
        return load_file(states[-1] / "tensors.safetensors"), state
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptFile(f"the checkpoint {states[-1]} is damaged: {error}; remove it to start over") from error


def _states(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("state-*") if path.is_dir())
