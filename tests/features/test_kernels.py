"""What every implementation of the kernels promises, against float64: nothing above its floor is missed, whatever the
weights and activations look like."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.errors import InputError
from gemscope.features.kernels import Kernels, Rows, native, plain, tie_bound
from gemscope.features.kernels.choice import choose, using
from gemscope.features.kernels.native import Native
from gemscope.features.kernels.plain import Plain
from gemscope.features.kernels.rows import below, beside

CPU = torch.device("cpu")


def implementations() -> list[Kernels]:
    """All that runs on this machine's processor."""
    found: list[Kernels] = [Plain(torch.bfloat16), Plain(torch.float32)]
    best = native.load()
    if best is not None:
        package = importlib.import_module("gemscope_native")
        each = [Native(package.libraries(), isa) for isa in native.ISAS[1 : native.ISAS.index(best.isa) + 1]]
        found += {one.isa: one for one in each if one.isa != "none"}.values()
    return found


def called(kernels: Kernels) -> str:
    return f"{kernels.name}-{kernels.isa}" if isinstance(kernels, Native) else f"{kernels.name}-{kernels.search}"


EACH = pytest.mark.parametrize("kernels", implementations(), ids=called)


# --- hard cases -----------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ordinary(
    tokens: int = 40, d: int = 70, features: int = 130, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W = normal(features, d, seed=seed)
    return (
        W / W.norm(dim=1, keepdim=True),
        0.1 * normal(features, seed=seed + 1),
        torch.full((features,), 1.5),
        normal(tokens, d, seed=seed + 2),
    )


def near_the_floor() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every feature's floor is one of its own pre-activations, give or take a few roundings."""
    W, b, floor, x = ordinary(seed=3)
    z = x.double() @ W.double().T + b
    for feature in range(len(W)):
        positive = z[:, feature][z[:, feature] > 0.1].sort().values
        nudge = 1 + (feature % 7 - 3) * 2.0**-22
        floor[feature] = positive[feature % len(positive)] * nudge
    return W, b, floor, x


def errors_all_one_way() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What bfloat16 loses of each number adds up, in the features or in the tokens: the bound on it is just reached."""
    signs = torch.sign(normal(64, seed=12))
    lossy = 1 + 0.9 * 2.0**-8  # rounds to 1
    x = signs * torch.tensor([[1.0], [lossy]])
    sizes = torch.tensor([[1.0], [lossy]]).repeat(9, 1)
    W = signs * sizes * 2.0 ** (torch.arange(18)[:, None] // 2 - 2)
    z = W.double() @ x.double().T
    floor = torch.where(sizes[:, 0] == 1, z[:, 1], z[:, 0]) * (1 - 1e-4)
    return W, torch.zeros(18), floor.float(), x


def huge_and_tiny() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b, floor, x = ordinary(tokens=48, seed=4)
    sizes = torch.tensor([1.0, 1e5, 1e13, 1e30, 1e-5, 1e-13, 1e-30, 1e-38])
    x *= sizes.repeat(6)[:, None]
    W *= sizes.roll(3).repeat(17)[:130, None]
    floor[::3], floor[1::3] = 0.0, 1e-20
    b[::2] = 0
    return W, b, floor, x


def overflowing() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products beyond float32: some pre-activations are infinite, and above any floor."""
    W, b, floor, x = ordinary(seed=5)
    x[3], W[7] = 3e38 * torch.sign(W[7]), torch.sign(W[7])
    return W, b, floor, x


def denormal() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b, floor, x = ordinary(seed=6)
    x[::2] = 1e-39 * torch.sign(x[::2])
    x[1::4, 10:] *= 1e-38
    b[:] = 0
    floor[:] = 0
    return W, b, floor, x


def firing_everywhere() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b, floor, x = ordinary(seed=7)
    b[5], floor[9], b[9] = 50.0, 0.0, 9.0
    return W, b, floor, x


def like_bos() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token with a norm of thousands, on which half of all features are active."""
    W, b, floor, x = ordinary(seed=8)
    x[0] *= 3000
    return W, b, floor, x


def zeros() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b, floor, x = ordinary(seed=9)
    x[::3], W[::4], b[::8], floor[::2] = 0, 0, 0, 0
    return W, b, floor, x


def never_to_fire() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dead features are often written as an infinite threshold."""
    W, b, floor, x = ordinary(seed=10)
    floor[::2] = torch.inf
    return W, b, floor, x


def cancelling() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Large terms of both signs that leave little: where low precision errs most against what is left."""
    W, b, floor, x = ordinary(seed=11)
    x[:, 1], W[:, 1] = -x[:, 0], W[:, 0]
    x[:, :2] *= 300
    b[::2], floor[::2] = 40.0, 41.0
    return W, b, floor, x


CASES: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "ordinary": ordinary,
    "one of each": partial(ordinary, tokens=1, d=1, features=1),
    "several blocks": partial(ordinary, tokens=2100, d=9, features=33),
    "many features": partial(ordinary, tokens=3, d=17, features=5000),
    **{
        made.__name__: made
        for made in (
            near_the_floor,
            errors_all_one_way,
            huge_and_tiny,
            overflowing,
            denormal,
            firing_everywhere,
        )
    },
    **{made.__name__: made for made in (like_bos, zeros, never_to_fire, cancelling)},
}


def check(rows: Rows, W: Tensor, b: Tensor, floor: Tensor, x: Tensor, token_floor: Tensor | None = None) -> None:
    """Right, but for entries that lie within the bound of their floor."""
    z = x.double() @ W.double().T + b
    bound = tie_bound(x, W, b)
    level = floor.expand(len(x), -1)
    if token_floor is not None:
        level = torch.maximum(level, token_floor[:, None])
    found = torch.zeros(len(x), len(W), dtype=torch.bool)
    found[rows.rows, rows.ids.long()] = True
    assert found.sum() == len(rows.ids)
    wrong = (found != (z > level)) & ((z - level).abs() > bound)
    assert not wrong.any(), f"{int(wrong.sum())} wrong, of {int((z > level).sum())} above their floor"
    at = rows.rows, rows.ids.long()
    with_room = z[at].abs() < 3e38
    assert ((rows.values - z[at]).abs() <= bound[at])[with_room].all()
    assert (rows.values > level[at]).all()
    place = rows.rows * len(W) + rows.ids
    assert (place.diff() > 0).all()
    assert rows.offsets.dtype == torch.int64
    assert rows.ids.dtype == torch.int32
    assert rows.values.dtype == torch.float32


@EACH
@pytest.mark.parametrize("case", CASES)
def test_no_entry_above_its_floor_is_missed(kernels: Kernels, case: str) -> None:
    W, b, floor, x = CASES[case]()
    check(kernels.above(kernels.pack(W, b, floor), x), W, b, floor, x)


@EACH
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 80),
    features=st.integers(1, 90),
    tokens=st.integers(0, 50),
    spread=st.floats(0, 8),
    floor_at=st.floats(0, 3),
)
def test_nor_in_any_other_case(
    kernels: Kernels, seed: int, d: int, features: int, tokens: int, spread: float, floor_at: float
) -> None:
    """Sizes of rows, columns and floors vary by up to eight orders of magnitude; floors lie on pre-activations."""
    generator = torch.Generator().manual_seed(seed)

    def scales(count: int) -> Tensor:
        return 10 ** (spread * (torch.rand(count, generator=generator) - 0.5))

    W = torch.randn(features, d, generator=generator) * scales(features)[:, None] * scales(d)
    x = torch.randn(tokens, d, generator=generator) * scales(tokens)[:, None] * scales(d)
    b = torch.randn(features, generator=generator) * scales(features)
    floor = floor_at * scales(features)
    if tokens:
        z = (x.double() @ W.double().T + b)[seed % tokens].float()
        planted = (z > 0) & (torch.rand(features, generator=generator) < 0.5)
        floor[planted] = z[planted]
    check(kernels.above(kernels.pack(W, b, floor), x), W, b, floor, x)


@EACH
def test_floors_of_tokens_hold_beside_those_of_features(kernels: Kernels) -> None:
    W, b, floor, x = ordinary(seed=20)
    floor[::2] = 0
    token_floor = torch.linspace(0, 2.5, len(x))
    packed = kernels.pack(W, b, floor)
    check(kernels.above(packed, x, token_floor), W, b, floor, x, token_floor)


@EACH
def test_no_bit_depends_on_the_batch(kernels: Kernels) -> None:
    """Where entries are few: one in fifteen thousand is enough to tell."""
    W, b, floor, x = ordinary(tokens=700, d=301, features=900, seed=21)
    floor[:] = 2.5
    packed = kernels.pack(W, b, floor)
    whole = kernels.above(packed, x)
    assert 0 < len(whole.ids) < 0.02 * 700 * 900
    for size in (1, 7, 64, 699):
        pieces = below([kernels.above(packed, piece) for piece in torch.split(x, size)])
        assert torch.equal(pieces.offsets, whole.offsets)
        assert torch.equal(pieces.ids, whole.ids)
        assert torch.equal(pieces.values, whole.values)


@EACH
def test_no_bit_depends_on_how_features_are_cut(kernels: Kernels) -> None:
    W, b, floor, x = ordinary(tokens=90, d=301, features=900, seed=22)
    floor[:] = 2.5
    whole = kernels.above(kernels.pack(W, b, floor), x)
    cuts = (0, 64, 65, 700, 900)
    parts = [slice(*cut) for cut in pairwise(cuts)]
    found = [kernels.above(kernels.pack(W[part].contiguous(), b[part], floor[part]), x) for part in parts]
    together = beside(found, [part.stop - part.start for part in parts])
    assert torch.equal(together.offsets, whole.offsets)
    assert torch.equal(together.ids, whole.ids)
    assert torch.equal(together.values, whole.values)


@EACH
def test_no_bit_depends_on_the_number_of_threads(kernels: Kernels) -> None:
    W, b, floor, x = ordinary(tokens=300, d=200, features=700, seed=23)
    floor[:] = 2.5
    packed = kernels.pack(W, b, floor)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernels.above(packed, x))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.ids, found[0].ids)
        assert torch.equal(other.values, found[0].values)


def test_the_search_is_what_makes_it_fast() -> None:
    """Most entries never reach float32: at a floor that one in a hundred exceeds, one in fifty is looked at."""
    W, b, floor, x = ordinary(tokens=200, d=256, features=2000, seed=24)
    floor[:] = 2.33
    looked = []

    class Counting(Plain):
        def dots(self, offsets: Tensor, ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
            looked.append(len(ids))
            return super().dots(offsets, ids, left, right)

    kernels = Counting(torch.bfloat16)
    found = kernels.above(kernels.pack(W, b, floor), x)
    assert len(found.ids) <= sum(looked) < 1.6 * len(found.ids)
    rough = (x.bfloat16() @ W.bfloat16().T).float() + b
    kept = torch.zeros(200, 2000, dtype=torch.bool)
    kept[found.rows, found.ids.long()] = True
    assert ((rough <= floor) & kept).sum() > 20  # bfloat16 by itself would have lost these


# --- what else they do ----------------------------------------------------------------------------------------------


def sparse(n_rows: int, n_columns: int, density: float, seed: int) -> tuple[Rows, Tensor]:
    dense = normal(n_rows, n_columns, seed=seed)
    dense[torch.rand(n_rows, n_columns, generator=torch.Generator().manual_seed(seed)) > density] = 0
    rows, ids = dense.nonzero(as_tuple=True)
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64)
    offsets[1:] = (dense != 0).sum(1).cumsum(0)
    return Rows(offsets, ids.to(torch.int32), dense[rows, ids]), dense


SHAPES = pytest.mark.parametrize(
    ("n_rows", "n_columns", "d"), [(1, 1, 1), (5, 300, 7), (40, 33, 100), (300, 70_000, 3)]
)


@EACH
@SHAPES
def test_weighted_sums_are_a_matrix_product(kernels: Kernels, n_rows: int, n_columns: int, d: int) -> None:
    entries, dense = sparse(n_rows, n_columns, min(0.3, 900 / n_columns), seed=30)
    other = normal(n_columns, d, seed=31)
    torch.testing.assert_close(kernels.sums(entries, other), dense @ other, rtol=1e-4, atol=1e-4)


@EACH
def test_rows_in_bfloat16_are_multiplied_and_summed_as_what_they_are_in_float32(kernels: Kernels) -> None:
    entries, _ = sparse(9, 30, 0.3, seed=30)
    left, right = normal(9, 40, seed=31), normal(30, 40, seed=32)
    low_left, low_right = left.bfloat16(), right.bfloat16()
    assert torch.equal(kernels.sums(entries, low_right), kernels.sums(entries, low_right.float()))
    found = kernels.dots(entries.offsets, entries.ids, low_left, low_right)
    assert torch.equal(found, kernels.dots(entries.offsets, entries.ids, low_left.float(), low_right.float()))
    assert kernels.dots(entries.offsets[:1], entries.ids[:0], low_left[:0], low_right).dtype == torch.float32


@EACH
def test_totals_are_the_sums_of_each_column(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 40, (3000,), generator=generator, dtype=torch.int32).clamp(max=37)
    ids[:1000] = 5  # one that fires everywhere
    values = torch.randn(3000, generator=generator)
    exact = torch.zeros(40, dtype=torch.float64).index_add_(0, ids, values.double())
    size = torch.zeros(40, dtype=torch.float64).index_add_(0, ids, values.double().abs())
    found = kernels.totals(ids, values, 40)
    assert ((found - exact).abs() <= 2.0**-24 * 1100 * size).all()
    assert found[38:].tolist() == [0, 0]
    assert kernels.totals(ids[:0], values[:0], 3).tolist() == [0, 0, 0]


@EACH
@SHAPES
def test_products_at_chosen_entries(kernels: Kernels, n_rows: int, n_columns: int, d: int) -> None:
    entries, _ = sparse(n_rows, n_columns, min(0.3, 900 / n_columns), seed=32)
    left, right = normal(n_rows, d, seed=33), normal(n_columns, d, seed=34)
    expected = (left[entries.rows] * right[entries.ids.long()]).sum(-1)
    torch.testing.assert_close(kernels.dots(entries.offsets, entries.ids, left, right), expected, rtol=1e-4, atol=1e-4)


@EACH
@SHAPES
def test_columns_as_rows(kernels: Kernels, n_rows: int, n_columns: int, d: int) -> None:
    entries, dense = sparse(n_rows, n_columns, min(0.3, 900 / n_columns), seed=35)
    turned, origin = kernels.transposed(entries, n_columns)
    again = torch.zeros(n_columns, n_rows)
    again[turned.rows, turned.ids.long()] = turned.values
    assert torch.equal(again, dense.T)
    assert torch.equal(entries.values[origin], turned.values)
    assert (torch.stack([turned.rows * n_rows + turned.ids]).diff() > 0).all()


@EACH
def test_nothing_is_nothing(kernels: Kernels) -> None:
    none = Rows(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    assert torch.equal(kernels.sums(none, torch.ones(5, 2)), torch.zeros(3, 2))
    assert len(kernels.dots(none.offsets, none.ids, torch.ones(3, 2), torch.ones(5, 2))) == 0
    assert len(kernels.transposed(none, 5)[0].offsets) == 6
    W, b, floor, _ = ordinary()
    packed = kernels.pack(W, b, floor)
    assert kernels.above(packed, torch.zeros(0, 70)).offsets.tolist() == [0]
    assert len(kernels.above(kernels.pack(W, b, floor + 1e9), torch.zeros(6, 70)).ids) == 0
    assert kernels.above(kernels.pack(W[:0], b[:0], floor[:0]), torch.ones(3, 70)).offsets.tolist() == [0, 0, 0, 0]


# --- which one ------------------------------------------------------------------------------------------------------


def test_an_implementation_can_be_asked_for() -> None:
    with using("torch"):
        assert choose(CPU).name == "torch"
    with (
        using("abacus"),
        pytest.raises(InputError, match=r"kernels 'abacus' do not run on cpu: expected one of .*torch"),
    ):
        choose(CPU)


def test_an_environment_variable_asks_for_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMSCOPE_KERNELS", "torch")
    assert choose(CPU).name == "torch"


def test_the_search_is_in_one_of_two_precisions() -> None:
    assert plain.load().search in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("case", ["huge_and_tiny", "overflowing", "zeros", "never_to_fire"])
def test_rows_that_low_precision_is_not_trusted_with_are_found_in_any_tile(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_TILE", 400)  # a few features at a time
    W, b, floor, x = CASES[case]()
    for search in (torch.bfloat16, torch.float32):
        kernels = Plain(search)
        check(kernels.above(kernels.pack(W, b, floor), x), W, b, floor, x)


@pytest.mark.parametrize("d", [1, 7, 64, 576, 2304, 131_072])
def test_the_bound_on_rounding_is_no_less_than_the_theorems(d: int) -> None:
    """Higham 2002, lemma 3.1: n roundings in a row lose at most n u / (1 − n u), of which there are d and the extra
    columns in the search, and an eighth of d in the exact product."""
    unit = 2.0**-24
    deep = d + plain._EXTRA, d / 8 + 8
    assert plain._rounding(d) >= sum(n * unit / (1 - n * unit) for n in deep)
