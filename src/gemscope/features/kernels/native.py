"""The operations in C++, by the libraries of the optional package `gemscope-native`: for x86 processors, from AVX2 to
AMX, and for ARM's. It knows how to call them and when they may be used; what they compute stands beside their source,
in `native/`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
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

ISAS = ("none", "neon", "neon_bf16", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")
"""What there are libraries for, in ascending order within each kind of processor."""

_ONEDNN = {
    **dict.fromkeys(("SSE41", "AVX"), "none"),
    **dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), "avx2_vnni"),
    **dict.fromkeys(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"), "avx512_bf16"),
    "AVX2": "avx2",
    "AVX512_CORE": "avx512",
    "AVX512_CORE_VNNI": "avx512_vnni",
}
"""Where ONEDNN_MAX_CPU_ISA stops short of AMX, and what it leaves us."""
NOT_INSTALLED = "gemscope-native is not installed"
_X86, _ARM = ("x86_64", "AMD64"), ("aarch64", "arm64", "ARM64")
"""What systems call the processors that there are kernels for."""
_OLD = ("DEFAULT", "NO AVX")
"""What torch says of x86 processors without AVX2."""


@dataclass(frozen=True)
class _Low:
    """What `pack` keeps: the library's own layout of W in 16 bits (empty for those that search in float32), and per
    feature the norm, what low precision loses of it, and what one of its whole numbers stands for."""

    strips: Tensor
    norm: Float[Tensor, "F"]
    lost: Float[Tensor, "F"]
    scale: Float[Tensor, "F"]


class Native:
    """`Kernels` in C++. Whatever `isa` finds the candidates, the same code decides and sums: the same bits."""

    name = "native"
    sparse_below = 1 / 5

    def __init__(self, libraries: Path, isa: str) -> None:
        """The best library of a folder for this machine, up to `isa` (`self.isa` says which: "none" can only refuse).

        Raises OSError when one cannot be loaded, AttributeError when it is not ours.
        """
        built = {path.stem: path for path in libraries.iterdir() if path.suffix in {".so", ".dylib", ".dll"}}
        machine = ctypes.CDLL(str(built["machine"]))
        level = machine.gsn_isa(ISAS.index(isa))
        while level:
            if ISAS[level] in built:  # an old compiler may not know the latest
                self._call = _declared(ctypes.CDLL(str(built[ISAS[level]])))
                if self._call.gsn_agrees():
                    break
            level = machine.gsn_isa(level - 1)
        self.isa = ISAS[level]

    def pack(self, W: Float[Tensor, "F D"], b: Float[Tensor, "F"], floor: Float[Tensor, "F"]) -> Packed:
        """With a copy in 16 bits, unless the instructions are best at float32."""
        W, b, floor = _floats(W), _floats(b), _floats(floor)
        kept = self._call.gsn_kept(*W.shape)
        low = _Low(torch.empty(kept, dtype=torch.uint8), *(torch.empty(len(W)) for _ in range(3)))
        _done(
            self._call.gsn_pack(
                _at(W), *W.shape, *(_at(low.strips), _at(low.norm), _at(low.lost), _at(low.scale)), _threads()
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
            *(_at(W), _at(low.strips), _at(low.norm), _at(low.lost), _at(low.scale)),
            *(_at(x), _at(packed.b), _at(packed.floor), None if token_floor is None else _at(token_floor)),
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
        native = Native(importlib.import_module("gemscope_native").libraries(), _limit())
    except Exception:  # whatever is wrong with an optional package, there are other kernels
        return None
    return None if native.isa == "none" else native


def obstacle() -> str | None:
    """Why these kernels do not run here, in words; None where they do."""
    if load() is not None:
        return None
    if _limit() == "none":
        return "ruled out by GEMSCOPE_ISA or ONEDNN_MAX_CPU_ISA"
    old = platform.machine() in _X86 and torch.backends.cpu.get_cpu_capability() in _OLD
    if old or platform.machine() not in _X86 + _ARM:
        return "for x86 processors with AVX2, and ARM's"
    return (
        NOT_INSTALLED
        if find_spec("gemscope_native") is None
        else "gemscope-native is installed and cannot be used: install it again"
    )


def _limit() -> str:
    own = os.environ.get("GEMSCOPE_ISA", "").lower()
    return own if own in ISAS else _ONEDNN.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), "amx")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Types as in native/src/abi.cpp."""
    array = c_void_p
    for name, result, arguments in (
        ("gsn_agrees", c_bool, ()),
        ("gsn_kept", c_int64, (c_int64, c_int64)),
        ("gsn_pack", c_bool, (array, c_int64, c_int64, array, array, array, array, c_int)),
        ("gsn_above", c_void_p, (*(array,) * 9, c_int64, c_int64, c_int64, c_int, POINTER(c_int64))),
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
