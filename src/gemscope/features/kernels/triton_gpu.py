"""The kernels on NVIDIA GPUs, in Triton: memory, launches, and the proof that the low-precision search misses nothing.
What each program does stands in `triton_programs`, which is imported, and Triton with it, when first needed.

With x̂, ŵ the rows in bfloat16, acc the tensor cores' sum for x̂·ŵ, s the float32 sum for x·w and N = ‖x‖ ‖w‖ (or that
of the rounded rows, if larger):

    |x·w − x̂·ŵ| ≤ ‖x − x̂‖ ‖w‖ + ‖x̂‖ ‖w − ŵ‖     Cauchy–Schwarz, on measured residuals
    |acc − x̂·ŵ| ≤ D 2^-22 N                       tensor cores: see below
    |s − x·w|    ≤ D 2^-24 N (1 + D 2^-24)         any order of summation
    z = float(s + b) > m  only if  s + b > m       rounding is monotonic, and m a float32

so that z > m only if acc > m − b − margin, margin = ‖x − x̂‖ ‖w‖ + ‖x̂‖ (‖w − ŵ‖ + 1.5 D 2^-22 ‖w‖), a number per token
times a number per feature, twice.

Tensor cores do not round as IEEE 754 has it. In each step they align n products and the running sum to the largest of
them, cut off what lies below its last bit, and normalise (Fasi, Higham, Mikaitis, Pranesh 2021,
doi:10.7717/peerj-cs.330: n is 4 on Volta, 8 on Ampere). With n at least 4 that is 1.5 D cuts and one, each of up to
2^-23 N. Numbers below 2^-126 may count as zero anywhere.

Where N reaches 2^126 a float32 sum may overflow on its way, whatever its end: tokens and features of norms from 2^63 on
are candidates with everything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemscope.features.kernels import Packed, Rows
from gemscope.features.kernels.rows import below, empty, offsets_of, stable_order, starts_of
from gemscope.shapes import Float, Int

if TYPE_CHECKING:
    from types import ModuleType

CHUNK_TOKENS = 2**15  # a chunk in bfloat16 is 150 MB at width 2,304
CHUNK_BITS = 2**31
"""Tokens searched at once: so many, or fewer where their bits would take more than 256 MB."""


@dataclass(frozen=True)
class Tile:
    """How the search is cut up. Its speed depends on it, and no answer."""

    tokens: int
    features: int
    depth: int
    stages: int
    """Of the pipeline that loads (tokens + features) x depth x 2 bytes a stage into shared memory."""
    warps: int
    group: int = 8
    """Rows of tiles that are worked through together."""


LARGE = Tile(tokens=128, features=256, depth=64, stages=3, warps=8)
SMALL = Tile(tokens=128, features=128, depth=64, stages=2, warps=4)
ROOMY = {(8, 0), (8, 7), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities with at least 163 KB of shared memory for a program; the others since 8.0 have 99 KB."""

# What answers depend on, bit by bit: the blocks of the float32 sums.
SLAB = 256  # columns: 17 MB of 16,384 rows
ENTRIES = 16
SHARES = 4
AHEAD = 8
TOGETHER = 128


@dataclass(frozen=True)
class _Rounded:
    """Rows in bfloat16, padded with zeros to whole blocks of columns; bounds on ‖row‖ and on what rounding took."""

    rows: Float[Tensor, "R K"]
    norm: Float[Tensor, "R"]
    lost: Float[Tensor, "R"]


@dataclass(frozen=True)
class _Low(_Rounded):
    """W so, `lost` with what sums of products lose; and per feature what x·w must exceed, and b, on the safe side."""

    needed: Float[Tensor, "R"]
    b: Float[Tensor, "R"]


@dataclass(frozen=True)
class Triton:
    """`Kernels` for CUDA tensors, and for CPU tensors in Triton's interpreter (where TRITON_INTERPRET=1)."""

    tile: Tile | None = None
    """None: as the device's shared memory allows."""
    name: str = "triton"
    sparse_below: float = 1 / 17  # an estimate: not measured yet

    def pack(self, W: Float[Tensor, "F D"], b: Float[Tensor, "F"], floor: Float[Tensor, "F"]) -> Packed:
        """See Kernels. Keeps a copy of W in bfloat16."""
        low = _rounded(W)
        lost = _or_infinite((low.lost + low.norm * (1.5 * W.shape[1] * 2.0**-22)) * (1 + 2.0**-20), low.norm)
        # Products and sums may lose 2^-126 each to underflow.
        needed = _lowered(floor.double() - b.double() - W.shape[1] * 2.0**-120)
        return Packed(W, b, floor, _Low(low.rows, low.norm, lost, needed, -_lowered(-b.double())))

    def above(self, packed: Packed, x: Float[Tensor, "T D"], token_floor: Float[Tensor, "T"] | None = None) -> Rows:
        """See Kernels. One order of summation always, however many entries there are."""
        n_features = len(packed.W)
        if not len(x) or not n_features:
            return empty(len(x), x.device)
        each = max(128, min(CHUNK_TOKENS, CHUNK_BITS // n_features // 128 * 128))
        floors = [None] * len(x) if token_floor is None else torch.split(token_floor, each)
        return below([self._chunk(packed, *chunk) for chunk in zip(torch.split(x, each), floors, strict=False)])

    def _chunk(self, packed: Packed, x: Tensor, token_floor: Tensor | None) -> Rows:
        offsets, ids = self._candidates(packed, x, token_floor)
        z = self.dots(offsets, ids, x, packed.W).add_(packed.b[ids])
        found, level = Rows(offsets, ids, z), packed.floor[ids]
        return found.where(z > (level if token_floor is None else torch.maximum(level, token_floor[found.rows])))

    def _candidates(self, packed: Packed, x: Tensor, token_floor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every entry that the bound cannot exclude, as offsets and ids of compressed rows."""
        words = self._search(packed, x, token_floor)
        n_tokens, n_words = words.shape
        counts = torch.empty(n_tokens, dtype=torch.int32, device=x.device)
        _launch("count", n_tokens, words, counts, n_words, BLOCK=512)
        offsets = offsets_of(counts)
        ids = torch.empty(int(offsets[-1]), dtype=torch.int32, device=x.device)
        _launch("spread", n_tokens, words, offsets, ids, n_words, BLOCK=128)
        return offsets, ids

    def _search(self, packed: Packed, x: Tensor, token_floor: Tensor | None) -> Int[Tensor, "T words"]:
        """A bit for every entry, 32 features a word, set where it is a candidate."""
        (n_tokens, width), n_features = x.shape, len(packed.W)
        low_x, low_W = _rounded(x), packed.low
        tile = self.tile or _tile(x.device)
        across, down = -(-n_features // tile.features), -(-n_tokens // tile.tokens)
        words = torch.empty(n_tokens, across * tile.features // 32, dtype=torch.int32, device=x.device)
        _launch(
            "search",
            across * down,
            *(low_x.rows, _or_infinite(low_x.norm, low_x.norm), low_x.lost),
            low_x.norm if token_floor is None else _lowered(token_floor.double() - width * 2.0**-120),
            *(low_W.rows, low_W.norm, low_W.lost, low_W.needed, low_W.b),
            words,
            *(n_tokens, n_features, low_W.rows.shape[1], words.shape[1]),
            TOKEN_FLOORS=token_floor is not None,
            BM=tile.tokens,
            BN=tile.features,
            BK=tile.depth,
            GROUP=tile.group,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return words

    def dots(
        self,
        offsets: Int[Tensor, "starts"],
        ids: Int[Tensor, "Z"],
        left: Float[Tensor, "R D"],
        right: Float[Tensor, "C D"],
    ) -> Float[Tensor, "Z"]:
        """In slabs of 256 columns, a binary tree within a slab, then slab after slab."""
        out = torch.zeros(len(ids), device=left.device)
        left, right, width = _aligned(left), _aligned(right), left.shape[1]
        programs = len(left) * SHARES if len(ids) else 0
        for first in range(0, width, SLAB):
            _launch(
                "dot_slab",
                programs,
                *(offsets, ids, left, right, out, width, first),
                SHARES=SHARES,
                ENTRIES=ENTRIES,
                SLAB=SLAB,
            )
        return out

    def sums(self, entries: Rows, rows: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        """See Kernels."""
        n_rows, width = len(entries.offsets) - 1, rows.shape[1]
        out = torch.empty(n_rows, width, device=rows.device)
        _launch(
            "weighted_sum",
            n_rows * -(-width // SLAB),
            *(entries.offsets, entries.ids, entries.values, _aligned(rows), out, n_rows, width),
            AHEAD=AHEAD,
            BLOCK=SLAB,
            num_warps=2,
        )
        return out

    def transposed(self, entries: Rows, n_columns: int) -> tuple[Rows, Int[Tensor, "Z"]]:
        """See Kernels. The sort is torch's: a radix sort, which keeps equal keys in their order."""
        return entries.transposed(n_columns)

    def totals(self, ids: Int[Tensor, "Z"], values: Float[Tensor, "Z"], n_columns: int) -> Float[Tensor, "F"]:
        """Sorted by column; in one, 128 running sums of every 128th value, then a binary tree of those."""
        order = stable_order(ids)
        out = torch.empty(n_columns, device=values.device)
        starts = starts_of(ids[order], n_columns)
        _launch("total", n_columns, starts, order, values, out, BLOCK=TOGETHER, num_warps=1)
        return out


@cache
def load(device: torch.device) -> Triton | None:
    """The implementation where it runs: Triton is installed, and compiles for this device what then runs on it."""
    return Triton() if usable(device) else None


def obstacle(device: torch.device) -> str | None:
    """Why these kernels do not run on a device, in words; None where they do."""
    if load(device) is not None:
        return None
    if device.type != "cuda":
        return "for GPUs of CUDA"
    if find_spec("triton") is None:
        return "triton is not installed"
    return "for GPUs from compute capability 8.0 (Ampere), with a C compiler at hand"


@cache
def usable(device: torch.device) -> bool:
    """Whether a small search comes out right on this device (tried once)."""
    # bfloat16 tensor cores from Ampere on; AMD's may round otherwise than the margin allows for.
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        return False
    eye, zero, kernels = torch.eye(16, device=device), torch.zeros(16, device=device), Triton()
    try:
        found = kernels.above(kernels.pack(eye, zero, zero), eye)
    except Exception:  # no C compiler for the launcher, a driver too old: whatever it is, other kernels can do the work
        return False
    return bool(found.ids.tolist() == list(range(16)))


def _rounded(rows: Tensor) -> _Rounded:
    n_rows, width = rows.shape
    padded = -(-width // LARGE.depth) * LARGE.depth
    # The interpreter would multiply the bits of bfloat16 as if they were integers.
    low = torch.empty(n_rows, padded, dtype=torch.bfloat16 if rows.is_cuda else torch.float32, device=rows.device)
    low[:, :width] = rows if rows.is_cuda else rows.bfloat16()
    low[:, width:] = 0
    norm, lost = rows.new_empty(n_rows), rows.new_empty(n_rows)
    _launch("measure", n_rows, rows, low, norm, lost, width, padded, BLOCK=512)
    return _Rounded(low, norm, lost)


def _or_infinite(bound: Tensor, norm: Tensor) -> Tensor:
    """Infinite where norms are so large that sums may overflow."""
    return bound.masked_fill(~(norm < 2.0**63), torch.inf)


def _lowered(exact: Tensor) -> Tensor:
    """float64 to float32 from below, with room for a few more roundings of that size."""
    return torch.where(exact.isinf(), exact, exact - exact.abs() * 2.0**-21).float()


def _tile(device: torch.device) -> Tile:
    roomy = device.type == "cuda" and torch.cuda.get_device_capability(device) in ROOMY
    return LARGE if roomy else SMALL


def _aligned(rows: Tensor) -> Tensor:
    """Triton compiles another program, which may sum in another order, for a tensor that starts off a 16-byte line."""
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def _launch(program: str, times: int, *arguments: Any, **options: Any) -> None:
    """Runs a program so many times side by side, on the device of its first argument."""
    if times:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            getattr(_programs(), program)[(times,)](*arguments, **options)


@cache
def _programs() -> ModuleType:
    from gemscope.features.kernels import triton_programs

    return triton_programs
