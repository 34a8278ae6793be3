"""What a run writes down as it goes: lines of JSON always, and the same to TensorBoard or Weights & Biases where they
are asked for and installed.

    RUN/log.jsonl      what the run computed: the same lines, bit for bit, whether it was cut off or not
    RUN/times.jsonl    when it did, and how fast: never the same twice, and so kept apart
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from msgspec import Meta

from gemscope.checked import EXACT, bytes_of, json_of
from gemscope.disk import room, written_aside
from gemscope.errors import CorruptFile, InputError, MissingDependency
from gemscope.training.checkpoint import KEPT

Line = Mapping[str, float | int]
"""What there is to say after one step, `step` and `rows` (read so far) among it."""

Watch = Callable[[str, Line], None]
"""Told the name of an SAE in training and each line of its log, with `rows_per_second`."""

KNOWN = ("tensorboard", "wandb")

_Number = Annotated[int, Meta(ge=0, le=EXACT)] | Annotated[float, Meta(ge=-1e30, le=1e30)]
_LARGE = 1 << 30
"""Bytes of a log: a line of 500 every fifty steps would take ten million steps and more."""


def unwatched(name: str, line: Line) -> None:
    """Watches nothing."""


class Log:
    """The log of a run's folder."""

    def __init__(
        self, folder: Path, done: int, *, rows: int = 0, also: Sequence[str] = (), writes: bool = True
    ) -> None:
        """Lines from after step `done` are dropped: those steps are about to be taken again. `rows` were read until
        then. Of several ranks one `writes`. Raises InputError for an unknown logger, MissingDependency for one that is
        not installed.
        """
        self._writes = writes
        if not writes:
            also = ()
        self._path, self._times = folder / "log.jsonl", folder / "times.jsonl"
        self._also = [_logger(name, folder, done) for name in also]
        self._last = time.monotonic(), rows
        for path in (self._path, self._times) if writes else ():
            _forget_after(path, done)

    def write(self, line: Line) -> float:
        """One line, rounded to 7 digits. Returns the rows per second since the one before, or since the start."""
        (then, rows), now = self._last, time.monotonic()
        self._last = now, int(line["rows"])
        speed = (line["rows"] - rows) / max(now - then, 1e-9)
        if not self._writes:
            return speed
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _append(self._path, {key: _rounded(value) for key, value in line.items()})
        _append(self._times, {"step": line["step"], "time": round(time.time(), 1), "rows_per_second": round(speed, 1)})
        for logger in self._also:
            logger.write({**line, "rows_per_second": speed})
        return speed

    def close(self) -> None:
        """Tells the other loggers that there is no more."""
        for logger in self._also:
            logger.close()


def read(path: Path, *, needed: Sequence[str] = ("step",)) -> list[dict[str, float]]:
    """The whole lines of a log, none where there is no file. Raises AccessError, CorruptFile where one lacks a number
    that is `needed`.
    """
    lines = [line for line, _ in _whole(path)]
    for number, line in enumerate(lines, 1):
        if missing := [name for name in needed if name not in line]:
            raise CorruptFile(f"{path} line {number} has no {missing[0]}: start the run again to have it anew")
    return lines


def _rounded(value: float | int) -> float | int:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _append(path: Path, line: Line) -> None:
    with room(path, kept=KEPT), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _forget_after(path: Path, done: int) -> None:
    if not path.exists():
        return
    kept = [raw for line, raw in _whole(path) if line["step"] <= done]
    with written_aside(path) as aside:
        aside.write_bytes(b"".join(kept))


def _whole(path: Path) -> list[tuple[dict[str, float], bytes]]:
    """Lines up to the first that was cut off in the middle: what they say, and as they stand there."""
    if not path.exists():
        return []
    kept = []
    for raw in bytes_of(path, most=_LARGE).splitlines(keepends=True):
        try:
            line = json_of(raw, dict[str, _Number], where=str(path))
        except CorruptFile:
            break
        if not (isinstance(line.get("step"), int) and raw.endswith(b"\n")):
            break
        kept.append((line, raw))
    return kept


# --- other loggers ------------------------------------------------------------------------------------------------


@runtime_checkable
class Logger(Protocol):
    """Somebody else's log."""

    def write(self, line: Line) -> None: ...
    def close(self) -> None: ...


def _logger(name: str, folder: Path, done: int) -> Logger:
    if name == "tensorboard":
        return _TensorBoard(folder, done)
    if name == "wandb":
        return _WeightsAndBiases(folder)
    raise InputError(f"no logger {name!r}: known are {' and '.join(KNOWN)}; log.jsonl is always written")


class _TensorBoard:
    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependency("TensorBoard is not installed: pip install tensorboard") from None
        self._board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, line: Line) -> None:
        for key, value in line.items():
            if key != "step":
                self._board.add_scalar(key, value, int(line["step"]))
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingDependency("Weights & Biases is not installed: pip install wandb") from None
        # A run that goes on is the same run there; runs of one name in different places are not.
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(project="gemscope", name=folder.name, dir=str(folder), id=place, resume="allow")

    def write(self, line: Line) -> None:
        self._run.log(dict(line), step=int(line["step"]))

    def close(self) -> None:
        self._run.finish()
