"""The operations in C++, by the library of the optional package `gemscope-native`: AMX or AVX-512 on x86 processors.
It knows how to call it and when it may be used; what it computes stands beside its source, in `native/`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from ctypes import POINTER, c_bool, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from gemscope.features.kernels import Packed, Rows
from gemscope.features.kernels.rows import empty, totals
from gemscope.shapes import Float, Int

ISAS = ("none", "avx512", "avx512_bf16", "amx")
"""What the library has kernels for, in ascending order."""

_ONEDNN = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"), "none"),
    **dict.fromkeys(("AVX512_CORE", "AVX512_CORE_VNNI"), "avx512"),
    **dict.fromkeys(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"), "avx512_bf16"),
}
"""Where ONEDNN_MAX_CPU_ISA stops short of AMX, and what it leaves us."""


@dataclass(frozen=True)
class _Low:
    """What `pack` keeps: the library's own layout of W in bfloat16 (empty for avx512), and per feature the norm and
    what low precision loses of it."""

    strips: Tensor
    norm: Float[Tensor, "F"]
    lost: Float[Tensor, "F"]


class Native:
    """`Kernels` in C++. Whatever `isa` finds the candidates, the same code decides and sums: the same bits."""

    name = "native"
    sparse_below = 1 / 5

    def __init__(self, library: Path, isa: str) -> None:
        """The library at a path, and the best instructions up to `isa` (`self.isa` says which: "none" can only refuse).

        Raises OSError when the library cannot be loaded, AttributeError when it is not ours.
        """
        self._call = _declared(ctypes.CDLL(str(library)))
        self._level: int = self._call.gsn_isa(ISAS.index(isa))
        self.isa = ISAS[self._level]

    def pack(self, W: Float[Tensor, "F D"], b: Float[Tensor, "F"], floor: Float[Tensor, "F"]) -> Packed:
        """A bfloat16 copy, unless the instructions are float32's."""
        W, b, floor = _floats(W), _floats(b), _floats(floor)
        n_features, width = W.shape
        copied = 0 if self.isa == "avx512" else -(-n_features // 16) * 16 * (-(-width // 32) * 32)
        low = _Low(torch.empty(copied, dtype=torch.bfloat16), torch.empty(n_features), torch.empty(n_features))
        _done(
            self._call.gsn_pack(
                self._level, _at(W), n_features, width, _at(low.strips), _at(low.norm), _at(low.lost), _threads()
            )
        )
        return Packed(W, b, floor, low)

    def above(self, packed: Packed, x: Float[Tensor, "T D"], token_floor: Float[Tensor, "T"] | None = None) -> Rows:
        """See `Kernels.above`. One order of summation always, however many entries there are."""
        if not len(x) or not len(packed.b):
            return empty(len(x), x.device)
        W, low, x = packed.W, packed.low, _floats(x)
        token_floor = None if token_floor is None else _floats(token_floor)
        count, threads = c_int64(), _threads()
        found = self._call.gsn_above(
            self._level,
            *(_at(W), _at(low.strips), _at(low.norm), _at(low.lost), _at(x), _at(packed.b), _at(packed.floor)),
            None if token_floor is None else _at(token_floor),
            *(len(x), *W.shape, threads, ctypes.byref(count)),
        )
        _done(found is not None)
        try:
            offsets = torch.empty(len(x) + 1, dtype=torch.int64)
            ids, values = torch.empty(count.value, dtype=torch.int32), torch.empty(count.value)
        except BaseException:
            self._call.gsn_drop(found)
            raise
        _done(self._call.gsn_take(found, _at(offsets), _at(ids), _at(values), threads))
        return Rows(offsets, ids, values)

    def dots(
        self,
        offsets: Int[Tensor, "starts"],
        ids: Int[Tensor, "Z"],
        left: Float[Tensor, "R D"],
        right: Float[Tensor, "C D"],
    ) -> Float[Tensor, "Z"]:
        """See `Kernels.dots`. A product's bits depend on its two rows alone."""
        offsets, ids, left, right = _starts(offsets), _ids(ids), _floats(left), _floats(right)
        out = torch.empty(len(ids))
        pattern = _at(offsets), _at(ids), len(offsets) - 1, len(right)
        _done(self._call.gsn_dots(*pattern, _at(left), _at(right), right.shape[1], _at(out), _threads()))
        return out

    def sums(self, entries: Rows, rows: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        """See `Kernels.sums`."""
        offsets, ids, values, rows = _starts(entries.offsets), _ids(entries.ids), _floats(entries.values), _floats(rows)
        out = torch.empty(len(offsets) - 1, rows.shape[1])
        pattern = _at(offsets), _at(ids), _at(values), len(out), len(rows)
        _done(self._call.gsn_sums(*pattern, _at(rows), rows.shape[1], _at(out), _threads()))
        return out

    def transposed(self, entries: Rows, n_columns: int) -> tuple[Rows, Int[Tensor, "Z"]]:
        """See `Kernels.transposed`."""
        offsets, ids = _starts(entries.offsets), _ids(entries.ids)
        starts = torch.empty(n_columns + 1, dtype=torch.int64)
        rows, origin = torch.empty(len(ids), dtype=torch.int32), torch.empty(len(ids), dtype=torch.int64)
        pattern = _at(offsets), _at(ids), len(offsets) - 1, n_columns
        _done(self._call.gsn_transposed(*pattern, _at(starts), _at(rows), _at(origin), _threads()))
        return Rows(starts, rows, entries.values[origin]), origin

    def totals(self, ids: Int[Tensor, "Z"], values: Float[Tensor, "Z"], n_columns: int) -> Float[Tensor, "F"]:
        """See `Kernels.totals`. Torch's own: one number an entry is little work."""
        return totals(ids, values, n_columns)


@cache
def load() -> Native | None:
    """The kernels, if `gemscope-native` is installed and this machine has the instructions. Never raises.

    ONEDNN_MAX_CPU_ISA is a limit here as it is for torch; GEMSCOPE_ISA (one of `ISAS`) is ours and goes before it.
    """
    try:
        native = Native(importlib.import_module("gemscope_native").library(), _limit())
    except Exception:  # whatever is wrong with an optional package, there are other kernels
        return None
    return None if native.isa == "none" else native


def obstacle() -> str | None:
    """Why these kernels do not run here, in words; None where they do."""
    if load() is not None:
        return None
    if find_spec("gemscope_native") is None:
        return "gemscope-native is not installed"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AMX"):
        return "for processors with AVX-512, which this one has not or may not use"
    return "gemscope-native is installed and cannot be used: install it again"


def _limit() -> str:
    own = os.environ.get("GEMSCOPE_ISA", "").lower()
    return own if own in ISAS else _ONEDNN.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), "amx")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Types as in native/src/abi.cpp."""
    array = c_void_p
    for name, result, arguments in (
        ("gsn_isa", c_int, (c_int,)),
        ("gsn_pack", c_bool, (c_int, array, c_int64, c_int64, array, array, array, c_int)),
        ("gsn_above", c_void_p, (c_int, *(array,) * 8, c_int64, c_int64, c_int64, c_int, POINTER(c_int64))),
        ("gsn_take", c_bool, (c_void_p, array, array, array, c_int)),
        ("gsn_drop", None, (c_void_p,)),
        ("gsn_dots", c_bool, (array, array, c_int64, c_int64, array, array, c_int64, array, c_int)),
        ("gsn_sums", c_bool, (array, array, array, c_int64, c_int64, array, c_int64, array, c_int)),
        ("gsn_transposed", c_bool, (array, array, c_int64, c_int64, array, array, array, c_int)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _threads() -> int:
    return torch.get_num_threads()


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _floats(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _ids(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int32).contiguous()


def _starts(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int64).contiguous()


def _done(enough_memory: bool) -> None:
    if not enough_memory:
        raise MemoryError("not enough memory for the native kernels: give them fewer tokens at a time")
