"""Shards that lie in a bucket. A few rows are read by their ranges; of a shard that is asked for again and again a copy
is fetched into the cache, and mapped as any other, as soon as that would have been the cheaper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from threading import Lock

import torch
from torch import Tensor

from gemscope.activations.bucket import Bucket
from gemscope.checked import json_of, read_tensors
from gemscope.errors import CorruptFile, NotFound

_REQUEST = 1 << 20
"""Bytes that come in the time that a request takes by itself: so much each counts beside what it brings."""
_BEGINNING = 1 << 12
"""Bytes in which the head of a shard has room."""
_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
}
"""As safetensors calls them."""


class Ranged:
    """A shard's tensors by name, as far as their rows are asked for."""

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        digest: str,
        rows: int,
        *,
        require: Callable[[Mapping[str, Column]], None],
        amiss: Callable[[Exception], CorruptFile],
    ) -> None:
        """So many rows it should have. `require` raises CorruptFile for what is no shard, once its head is read;
        `amiss` puts into words what is wrong with it.
        """
        self._bucket, self._name, self._digest, self.rows = bucket, name, digest, rows
        self._require, self._amiss = require, amiss
        self.form: tuple[int, torch.dtype] | None = None
        """Width and number format that its values have to have."""
        self._columns: dict[str, Column] = {}
        self._size = self._asked = 0
        self._near: Mapping[str, Tensor] | None = None
        self._is_far = False
        """Whether there was no room for a copy."""
        self._lock = Lock()

    def __getitem__(self, name: str) -> Column:
        return self._head()[name]

    def _head(self) -> dict[str, Column]:
        with self._lock:
            if not self._columns:
                try:
                    columns = self._told()
                    self._require(columns)
                    values = columns["values"]
                    if self.form not in (None, (values.shape[1], values.dtype)):
                        raise CorruptFile("it is unlike the others in width or format")
                except (CorruptFile, NotFound) as error:
                    raise self._amiss(error) from error
                self._columns = columns
        return self._columns

    def _told(self) -> dict[str, Column]:
        """Where its tensors lie: eight bytes say how long the description is that follows them. Raises CorruptFile."""
        if (about := self._bucket.about(self._name)) is None:
            raise NotFound(self._name)
        size = about[0]
        if size < 8:
            raise CorruptFile(f"it has {size} bytes")
        (start,) = self._bucket.ranges(self._name, [0], [min(size, _BEGINNING)])
        length = int.from_bytes(start[:8], "little")
        if not 8 + length <= size:
            raise CorruptFile("it is no whole safetensors file")
        if 8 + length > len(start):
            (start,) = self._bucket.ranges(self._name, [0], [8 + length])
        head = json_of(start[8 : 8 + length], dict[str, object], where="its head")
        found = {}
        for name, one in head.items():
            if name != "__metadata__":
                found[name] = Column(self, name, *_form(one, 8 + length, size))
        self._size = size
        return found

    def take(self, name: str, index: Tensor) -> Tensor:
        """Rows of one of its tensors, by ascending numbers."""
        column = self[name]
        once, places = index.unique_consecutive(return_inverse=True)  # type: ignore[no-untyped-call]
        runs = _runs(once)
        with self._lock:
            self._asked += len(runs) * _REQUEST + len(index) * column.row
            if self._near is None and not self._is_far and self._asked >= self._size:
                path = self._bucket.cached(self._name, self._digest)
                self._near = None if path is None else read_tensors(path)[0]
                self._is_far = path is None
            near = self._near
        if near is not None:
            return near[name][index]
        starts = [column.start + first * column.row for first, _ in runs]
        ends = [column.start + (last + 1) * column.row for _, last in runs]
        data = bytearray().join(self._bucket.ranges(self._name, starts, ends))
        return torch.frombuffer(data, dtype=column.dtype).view(-1, *column.shape[1:])[places]


class Column:
    """One tensor of a shard, of which rows can be had."""

    def __init__(self, shard: Ranged, name: str, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> None:
        self._shard, self._name, self.dtype, self.shape, self.start = shard, name, dtype, torch.Size(shape), start
        self.row = dtype.itemsize * math.prod(shape[1:])
        """Bytes of one."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        return self._shard.take(self._name, index)


def _form(said: object, before: int, size: int) -> tuple[torch.dtype, tuple[int, ...], int]:
    """Number format, shape, and where it begins in the file. Raises CorruptFile."""
    match said:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if dtype in _DTYPES:
            if all(isinstance(one, int) and one >= 0 for one in shape) and shape:
                bytes_ = math.prod(shape) * _DTYPES[dtype].itemsize
                if start >= 0 and end - start == bytes_ and before + end <= size:
                    return _DTYPES[dtype], tuple(shape), before + start
    raise CorruptFile(f"its head says {json.dumps(said)[:100]}")


def _runs(index: Tensor) -> list[tuple[int, int]]:
    """Of ascending numbers the first and the last of those that follow one another."""
    if not len(index):
        return []
    breaks = (index.diff() > 1).nonzero()[:, 0]
    firsts = torch.cat([index[:1], index[breaks + 1]])
    lasts = torch.cat([index[breaks], index[-1:]])
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
