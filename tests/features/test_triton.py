"""The Triton kernels: against float64, and against their own sums to the last bit.

Where there is no CUDA device they run in Triton's interpreter, which has to be asked for before Triton is imported. Where
there is one these tests are marked `gpu` and run on it, unless TRITON_INTERPRET=1 says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dense import assert_equals_dense, random_weights
from gemscope.features.kernels import Kernels, Rows, tie_bound, triton_gpu
from gemscope.features.kernels.triton_gpu import Tile, Triton
from gemscope.training.objective import Terms, step

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
tl = pytest.importorskip("triton.language", reason="Triton is not installed: it exists for Linux alone")

pytestmark = [
    *([] if INTERPRETED else [pytest.mark.gpu]),
    # numpy, in the interpreter, on what overflows.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]

TINY = Tile(tokens=16, features=64, depth=64, stages=2, warps=4)
INF = float("inf")


@pytest.fixture(autouse=True)
def _interpreter_is_on() -> None:
    """Triton decides when it is imported, by whichever test module or library comes first."""
    assert (type(tl.sum).__name__ == "InterpretedFunction") == INTERPRETED, "Triton was imported before this module"


def data(n_tokens: int, n_features: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, W and b, with z of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    x, W, b = (
        torch.randn(*shape, generator=generator) for shape in ((n_tokens, width), (n_features, width), (n_features,))
    )
    return x.to(DEVICE), (W / width**0.5).to(DEVICE), (b / 10).to(DEVICE)


def all_of_it(kernels: Kernels, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """[T, F]: z as the kernels sum it, for every entry, without any search."""
    ids = torch.arange(len(W), dtype=torch.int32, device=DEVICE).repeat(len(x))
    offsets = torch.arange(len(x) + 1, device=DEVICE) * len(W)
    return kernels.dots(offsets, ids, x, W).view(len(x), len(W)) + b


def check(
    x: Tensor, W: Tensor, b: Tensor, floor: Tensor, token_floor: Tensor | None = None, *, kernels: Triton | None = None
) -> Rows:
    """`above` misses nothing and adds nothing, bit for bit; and the sums are float32's."""
    kernels = Triton(TINY) if kernels is None else kernels
    found = kernels.above(kernels.pack(W, b, floor), x, token_floor)
    z = all_of_it(kernels, x, W, b)
    over = z > (floor if token_floor is None else torch.maximum(floor, token_floor[:, None]))
    assert torch.equal(found.offsets, torch.nn.functional.pad(over.sum(1).cumsum(0), (1, 0)))
    assert torch.equal(found.ids, over.nonzero()[:, 1].to(torch.int32))
    assert torch.equal(found.values, z[over])
    exact, tie = x.double() @ W.double().T + b.double(), tie_bound(x, W, b)
    overflows = tie >= 2.0**104 * x.shape[1]  # ‖x‖ ‖w‖ beyond about 2^127
    assert ((z - exact).abs().le(tie / 2 + x.shape[1] * 2.0**-126) | overflows).all()
    return found


def just_below(z: Tensor) -> Tensor:
    return torch.nextafter(z, torch.full_like(z, -INF))


# --- above ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "n_features", "width"), [(1, 1, 1), (3, 65, 7), (5, 31, 64), (17, 70, 300)])
def test_it_finds_every_entry_above_its_floor_whatever_the_shape(n_tokens: int, n_features: int, width: int) -> None:
    x, W, b = data(n_tokens, n_features, width)
    found = check(x, W, b, torch.full_like(b, 0.8))
    assert len(found.ids) < n_tokens * n_features


def test_both_floors_hold() -> None:
    x, W, b = data(5, 70, 40)
    token_floor = torch.linspace(-1, 2, len(x), device=DEVICE)
    token_floor[0], token_floor[1] = INF, -INF
    found = check(x, W, b, torch.full_like(b, 0.3), token_floor)
    assert found.offsets[1] == 0
    assert found.offsets[2] > 0


def test_floors_of_the_smallest_step_below_and_at_the_value_decide() -> None:
    x, W, b = data(3, 40, 48, seed=1)
    z = all_of_it(Triton(TINY), x, W, b)
    for token in range(2):
        assert set(range(len(W))) == set(check(x[token : token + 1], W, b, just_below(z[token])).ids.tolist())
        assert len(check(x[token : token + 1], W, b, z[token]).ids) == 0
        lowest = torch.full_like(b, -INF)
        assert len(check(x, W, b, lowest, just_below(z[:, 3])).ids) > 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nothing_is_missed_where_rounding_loses_all_that_it_can(sign: float) -> None:
    # 1 + 2^-8 lies half-way between two numbers of bfloat16, and residuals, rows and each other are parallel.
    x = torch.full((4, 256), 1 + 2.0**-8, device=DEVICE) * torch.tensor([[1.0], [2.0], [-1.0], [3e4]], device=DEVICE)
    W = torch.full((40, 256), 1 + 2.0**-8, device=DEVICE) * sign
    W[::2] = sign * (1 + 3 * 2.0**-8)  # rounds up
    b = torch.zeros(40, device=DEVICE)
    z = all_of_it(Triton(TINY), x, W, b)
    for token in range(len(x)):
        found = check(x[token : token + 1], W, b, just_below(z[token]))
        assert len(found.ids) == len(W)


@pytest.mark.parametrize(
    ("against", "size"),
    [
        *((1.0, size) for size in (1e30, 1e18, 1e-18, 1e-30, 1e-40)),
        (1e-30, 1e30),
        (1e-30, 1e-40),
        (1e30, 1e18),
        (1e30, 1e30),
    ],
)
def test_huge_and_vanishing_norms_miss_nothing(size: float, against: float) -> None:
    x, W, b = data(3, 40, 20, seed=2)
    x, W = x * size, W * torch.linspace(0, against, 40, device=DEVICE)[:, None]
    z = all_of_it(Triton(TINY), x, W, 0 * b)
    for floor in (torch.zeros_like(b), just_below(z[1])):
        check(x, W, 0 * b, floor.nan_to_num())


def test_sums_that_overflow_on_the_way_are_compared_as_they_come_out() -> None:
    x = torch.full((2, 64), 1e19, device=DEVICE)
    W = torch.full((5, 64), 1.5e19, device=DEVICE)
    W[:, 1::2] *= -1  # the sum is 0, its parts are not
    W[1, :32], W[1, 32:] = 2.5e19, -2.5e19
    W[2], W[3] = 1e30, -1e30
    check(x, W, torch.zeros(5, device=DEVICE), torch.tensor([1e30, 1e38, 1e38, -1e38, -INF], device=DEVICE))


def test_where_only_the_search_overflows_nothing_is_missed() -> None:
    # Rounded up, each product is infinite, and their sum no number.
    x = torch.full((1, 2), 2.0**64 * (1 - 2.0**-10), device=DEVICE)
    found = check(x, x * torch.tensor([[1.0, -1.0]], device=DEVICE), x[:, 0] * 0, x[:, 0] * 0 - 1)
    assert found.values.tolist() == [0]


def test_where_only_the_sum_overflows_nothing_is_missed() -> None:
    # In numpy's order columns 0 and 72 come together before the others, in the search's they do not.
    x, W = torch.zeros(2, 1, 128, device=DEVICE).unbind()
    x[0, [0, 9, 72, 74]], W[0, [0, 9, 72, 74]] = (
        2.0**64,
        2.0**64 * torch.tensor([0.75, -0.75, 0.75, -0.75], device=DEVICE),
    )
    found = check(x, W, x[:, 1], x[:, 1] + 2.0**126)
    assert found.values.tolist() == ([INF] if INTERPRETED else [])


def test_rows_of_zeros_are_their_bias() -> None:
    x, W, b = data(5, 40, 20)
    x[1], W[2], W[3], b[3] = 0, 0, 0, -1
    floor = just_below(b)
    floor[4] = b[4]
    found = check(x, W, b, floor)
    assert found.ids[found.offsets[1] : found.offsets[2]].tolist() == [i for i in range(40) if i != 4]


def test_everything_may_be_active_and_nothing() -> None:
    x, W, b = data(5, 100, 20)
    floor = torch.full_like(b, INF)
    assert len(check(x, W, b, floor).ids) == 0
    floor[7] = -INF  # one feature that fires everywhere
    assert check(x, W, b, floor).ids.tolist() == [7] * 5
    token_floor = torch.full((5,), INF, device=DEVICE)
    token_floor[3] = -INF  # a token with all features
    assert check(x, W, b, torch.full_like(b, -INF), token_floor).offsets.tolist() == [0, 0, 0, 0, 100, 100]


def test_what_cannot_be_above_is_not_even_a_candidate() -> None:
    x, W, b = data(6, 40, 40)
    kernels = Triton(TINY)
    for floor, expected in ((INF, 0), (40.0, 0), (-INF, 6 * 40)):
        packed = kernels.pack(W, b, torch.full_like(b, floor))
        assert len(kernels._candidates(packed, x, None)[1]) == expected
    packed = kernels.pack(W, b, torch.full_like(b, 0.5))
    candidates, found = kernels._candidates(packed, x, None)[1], kernels.above(packed, x).ids
    assert len(found) <= len(candidates) < 1.1 * len(found)


def test_neither_batch_nor_tile_changes_a_bit() -> None:
    x, W, b = data(9, 70, 301, seed=3)  # rows off the 16-byte grid
    floor = torch.full_like(b, 1.0)
    whole = check(x, W, b, floor)
    for kernels in (Triton(), Triton(Tile(tokens=32, features=128, depth=32, stages=3, warps=4))):
        again = kernels.above(kernels.pack(W, b, floor), x)
        assert torch.equal(again.ids, whole.ids)
        assert torch.equal(again.values, whole.values)
    kernels = Triton(TINY)
    packed, start = kernels.pack(W, b, floor), 0
    for size in (1, 2, 6):
        part = kernels.above(packed, x[start : start + size])
        of_whole = slice(int(whole.offsets[start]), int(whole.offsets[start + size]))
        assert torch.equal(part.ids, whole.ids[of_whole])
        assert torch.equal(part.values, whole.values[of_whole])
        start += size
    some = kernels.above(kernels.pack(W[5:60].contiguous(), b[5:60], floor[5:60]), x)
    inside = (whole.ids >= 5) & (whole.ids < 60)
    assert torch.equal(some.values, whole.values[inside])


def test_chunks_of_tokens_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gpu, "CHUNK_TOKENS", 128)
    x, W, b = data(130, 5, 8)
    check(x, W, b, torch.zeros_like(b), torch.linspace(-1, 1, 130, device=DEVICE))


def test_no_tokens_and_no_features_give_no_entries() -> None:
    x, W, b = data(3, 10, 8)
    kernels = Triton()
    assert kernels.above(kernels.pack(W, b, b), x[:0]).offsets.tolist() == [0]
    assert kernels.above(kernels.pack(W[:0], b[:0], b[:0]), x).offsets.tolist() == [0, 0, 0, 0]


# --- with patterns --------------------------------------------------------------------------------------------------


def pattern(lengths: list[int], n_columns: int, seed: int = 0) -> Rows:
    """Rows of so many entries in random columns."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(n_columns, generator=generator)[:length].sort().values for length in lengths]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(sum(lengths), generator=generator)
    return Rows(offsets.to(DEVICE), torch.cat(ids).to(torch.int32).to(DEVICE), values.to(DEVICE))


@pytest.mark.parametrize("width", [1, 30, 256, 515])
def test_dots_are_those_of_the_rows(width: int) -> None:
    entries = pattern([0, 3, 17, 0, 80, 64, 1], 80)
    left, right, _ = data(7, 80, width)
    exact = (left.double() @ right.double().T)[entries.rows, entries.ids]
    bound = tie_bound(left, right, torch.zeros(80, device=DEVICE))[entries.rows, entries.ids]
    assert ((Triton().dots(entries.offsets, entries.ids, left, right) - exact).abs() <= bound / 2).all()


@pytest.mark.parametrize("width", [1, 30, 256, 515])
def test_sums_are_the_product_with_the_sparse_matrix(width: int) -> None:
    entries = pattern([0, 3, 17, 0, 80, 8, 1], 80)
    rows = data(1, 80, width)[1]
    dense = torch.zeros(7, 80, device=DEVICE)
    dense[entries.rows, entries.ids.long()] = entries.values
    exact = dense.double() @ rows.double()
    size = dense.double().abs() @ rows.double().abs()
    out = Triton().sums(entries, rows)
    assert ((out - exact).abs() <= 80 * 2.0**-23 * size).all()
    assert (out[0] == 0).all()


def test_sums_add_entries_in_their_order() -> None:
    values = torch.tensor([2.0**24, 1, -(2.0**24), 1, 0, 0, 0, 0, 0, 0, 2.0**24, 1], device=DEVICE)
    offsets = torch.tensor([0, 4, 12], device=DEVICE)
    entries = Rows(offsets, torch.arange(12, dtype=torch.int32, device=DEVICE), values)
    assert Triton().sums(entries, torch.ones(12, 3, device=DEVICE)).tolist() == [[1.0] * 3, [2.0**24] * 3]


def test_the_transpose_lists_columns_and_says_where_entries_came_from() -> None:
    entries = pattern([0, 3, 17, 0, 40], 41)
    columns, order = Triton().transposed(entries, 41)
    assert torch.equal(columns.values, entries.values[order])
    assert torch.equal(columns.ids, entries.rows[order].to(torch.int32))
    assert torch.equal(columns.rows.to(torch.int32), entries.ids[order])
    back, _ = Triton().transposed(columns, 5)
    assert all(torch.equal(getattr(back, name), getattr(entries, name)) for name in ("offsets", "ids", "values"))


@pytest.mark.parametrize("width", [1, 30, 515])
def test_rows_in_bfloat16_are_multiplied_as_what_they_are_in_float32(width: int) -> None:
    entries = pattern([0, 3, 17, 0, 80], 80)
    left, right, _ = data(5, 80, width)
    left, right = left.bfloat16(), right.bfloat16()
    kernels = Triton()
    assert torch.equal(kernels.sums(entries, right), kernels.sums(entries, right.float()))
    found = kernels.dots(entries.offsets, entries.ids, left, right)
    assert torch.equal(found, kernels.dots(entries.offsets, entries.ids, left.float(), right.float()))


def test_totals_are_the_sums_of_each_column_in_an_order_that_is_always_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 30, (700,), generator=generator, dtype=torch.int32)
    ids[:400] = 5  # one that fires everywhere
    ids[ids == 7] = 8
    values = torch.randn(700, generator=generator)
    exact = torch.zeros(30, dtype=torch.float64).index_add_(0, ids, values.double())
    size = torch.zeros(30, dtype=torch.float64).index_add_(0, ids, values.double().abs())
    found = Triton().totals(ids.to(DEVICE), values.to(DEVICE), 30)
    assert ((found.cpu() - exact).abs() <= 2.0**-24 * 20 * size).all()
    assert found[7] == 0
    alone = ids == 5
    assert torch.equal(Triton().totals(ids[alone].to(DEVICE), values[alone].to(DEVICE), 6)[5], found[5])
    assert Triton().totals(ids[:0].to(DEVICE), values[:0].to(DEVICE), 3).tolist() == [0, 0, 0]


STEPS: dict[str, dict[str, Any]] = {
    "jumprelu": {"bandwidth": 0.2},
    "into the input": {"bandwidth": 0.2, "to_input": True},
    "Matryoshka": {"bandwidth": 0.2, "prefixes": (5, 30), "penalty": "quadratic"},
    "l1": {"gate": "relu", "penalty": "l1"},
    "batchtopk": {"gate": "batchtopk", "penalty": "none"},
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_training_step_s_gradients_are_those_of_a_dense_one_by_autograd(kind: str) -> None:
    weights = random_weights(30, 10, 3).to(DEVICE)
    if kind in ("l1", "batchtopk"):
        weights.threshold.fill_(0.5 if kind == "batchtopk" else 0.0)
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    assert_equals_dense(weights, x, {"kernels": Triton(TINY), "dense": False}, target=5.0, **STEPS[kind])


@pytest.mark.gpu
def test_a_training_step_is_the_same_bits_each_time() -> None:
    weights, x = random_weights(1500, 64, 3).to(DEVICE), data(700, 1, 64)[0]
    (first, one), *others = (
        step(weights, x, x, Terms(bandwidth=0.2, target=50.0), kernels=Triton(), dense=False) for _ in range(5)
    )
    for told, gradients in others:
        assert told.loss == first.loss
        assert all(torch.equal(tensor, one.tensors()[name]) for name, tensor in gradients.tensors().items())


def test_patterns_without_entries_are_fine() -> None:
    entries = pattern([0, 0], 4)
    left, right, _ = data(2, 4, 8)
    assert Triton().dots(entries.offsets, entries.ids, left, right).shape == (0,)
    assert Triton().sums(entries, right).tolist() == [[0.0] * 8] * 2
    assert Triton().sums(Rows(entries.offsets[:1], entries.ids, entries.values), right).shape == (0, 8)
    assert Triton().transposed(entries, 4)[0].offsets.tolist() == [0] * 5


# --- where it runs --------------------------------------------------------------------------------------------------


def test_it_keeps_the_contract_and_leaves_processors_alone() -> None:
    assert isinstance(Triton(), Kernels)
    assert triton_gpu.load(torch.device("cpu")) is None


@pytest.mark.gpu
def test_it_is_the_choice_on_a_gpu() -> None:
    assert triton_gpu.load(torch.device("cuda")) == Triton()


def test_triton_is_imported_when_it_is_needed_and_not_before() -> None:
    run = "import sys, gemscope.features.kernels.triton_gpu; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", run], check=False).returncode == 0


COMPILES = """
import re, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gemscope.features.kernels import triton_gpu as gpu, triton_programs as programs

TYPES = {"starts": "*i64", "order": "*i64", "low": "*bf16", "x": "*bf16", "w": "*bf16", "words": "*i32", "counts": "*i32", "ids": "*i32", "offsets": "*i64"}
SIZES = ("T", "F", "K", "D", "R", "n_words", "first_column")

def compiled(program, target, num_warps=4, num_stages=3, **constants):
    names = program.arg_names
    types = {name: TYPES.get(name, "i32" if name in SIZES else "*fp32") for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    multiple_of_16 = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    source = ASTSource(program, types, {(names.index(name),): value for name, value in constants.items()}, multiple_of_16)
    done = compile(source, target=GPUTarget("cuda", target, 32), options=dict(num_warps=num_warps, num_stages=num_stages))
    ptx = done.asm["ptx"]
    assert not re.search(r"tf32|\\batom|\\bred\\.", ptx), program
    return ptx, done.metadata.shared

for target, tile, shared in ((90, gpu.LARGE, 227), (80, gpu.SMALL, 99)):
    for floors in (False, True):
        ptx, used = compiled(
            programs.search, target, tile.warps, tile.stages, TOKEN_FLOORS=floors,
            BM=tile.tokens, BN=tile.features, BK=tile.depth, GROUP=tile.group,
        )
        assert used <= shared * 1024, used
        assert re.search(r"wgmma.*bf16" if target == 90 else r"mma\\.sync.*bf16", ptx)
    for program, block in ((programs.measure, 512), (programs.count, 512), (programs.spread, 128)):
        compiled(program, target, BLOCK=block)
    compiled(programs.dot_slab, target, SHARES=gpu.SHARES, ENTRIES=gpu.ENTRIES, SLAB=gpu.SLAB)
    compiled(programs.weighted_sum, target, 2, AHEAD=gpu.AHEAD, BLOCK=gpu.SLAB)
    compiled(programs.total, target, 1, BLOCK=gpu.TOGETHER)
    TYPES.update(left="*bf16", right="*bf16", rows="*bf16")  # products of a training step
    compiled(programs.dot_slab, target, SHARES=gpu.SHARES, ENTRIES=gpu.ENTRIES, SLAB=gpu.SLAB)
    compiled(programs.weighted_sum, target, 2, AHEAD=gpu.AHEAD, BLOCK=gpu.SLAB)
    for name in ("left", "right", "rows"):
        del TYPES[name]
"""


def test_the_programs_compile_for_gpus_that_are_not_here(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kept = pytestconfig.cache.mkdir("triton")  # by what makes a program what it is: each is compiled once
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(kept)}
    (tmp_path / "compiles.py").write_text(COMPILES)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "compiles.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
