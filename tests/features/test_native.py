"""The native kernels against float64 and against themselves: every instruction set finds the same bits, and all of them.

AMX is tested on machines without it too, by the library built with its tile operations in plain C++; ARM's libraries on
x86 by QEMU (`-m slow`), where it is installed and a compiler for them (Debian: qemu-user, g++-aarch64-linux-gnu).
"""

import ctypes
import fcntl
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Rows, native, tie_bound
from native_elsewhere import Elsewhere

package = pytest.importorskip("gemscope_native", reason="gemscope-native is not installed: pip install ./native")
INF = float("inf")
SOURCES, ELSEWHERE = Path(__file__).parents[2] / "native" / "src", Path(__file__).with_name("native_elsewhere.cpp")
FLAGS = [f"-mavx512{one}" for one in ("f", "bw", "dq", "vl", "bf16")] + ["-mfma", "-mamx-tile", "-mamx-bf16"]


OPTIONS = ["-std=c++17", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
ARM = {"neon": ([], "search_f32"), "neon_bf16": (["-march=armv8.2-a+bf16"], "search_bf16")}
"""Flags and the file that searches, as in native/CMakeLists.txt."""


def built(cache: pytest.Cache, name: str, build: Callable[[Path], None]) -> Path:
    """A folder in the tests' cache that `build` has filled, once for each state of the sources."""
    sources = [*sorted(SOURCES.iterdir()), ELSEWHERE]
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = Path(cache.mkdir(name)) / content[:16]
    with open(folder.with_suffix(".lock"), "w") as lock:  # the tests' workers need it all at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            part.mkdir(exist_ok=True)
            build(part)
            part.rename(folder)
    return folder


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None or not SOURCES.exists():
        pytest.skip(f"no {name}, or no sources of the native kernels here to build them with")
    return found


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Path:
    """The libraries with AMX in software."""
    compiler = tool("g++")

    def build(to: Path) -> None:
        for name, flags, files in (("machine", [], ["machine"]), ("amx", FLAGS, ["abi", "rows", "search_amx"])):
            sources = [str(SOURCES / f"{file}.cpp") for file in files]
            options = [*OPTIONS, "-Os", "-shared", "-fPIC", "-DGSN_EMULATE_AMX", *flags]
            subprocess.run([compiler, *options, *sources, "-o", to / f"{name}.so"], check=True, capture_output=True)

    return built(pytestconfig.cache, "emulated-amx", build)


@pytest.fixture(scope="session")
def on_arm(pytestconfig: pytest.Config) -> Iterator[Callable[[str], Elsewhere]]:
    """The kernels for an instruction set of ARM's, run by QEMU."""
    compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64")

    def build(to: Path) -> None:
        for isa, (flags, search) in ARM.items():
            sources = [ELSEWHERE, *(SOURCES / f"{file}.cpp" for file in ("abi", "rows", search))]
            command = [compiler, *OPTIONS, "-O2", "-static", *flags, *sources, "-o", to / isa]
            subprocess.run(command, check=True, capture_output=True)

    folder = built(pytestconfig.cache, "native-on-arm", build)
    running = {isa: Elsewhere([emulator, "-cpu", "max", folder / isa], isa) for isa in ARM}
    yield running.__getitem__
    for one in running.values():
        one.close()


OURS = [isa for isa in native.ISAS[1:] if isa.startswith("neon") == (platform.machine() in {"aarch64", "arm64"})]
"""Of this machine's kind of processor."""


class TwoThreads:
    """Kernels that work in two threads. What the tests compute themselves takes one: small tensors go no faster in two,
    which wait for each other all the time.
    """

    def __init__(self, kernels: native.Native | Elsewhere) -> None:
        self.alone = kernels

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.alone, name)
        return partial(self._run, found) if callable(found) else found

    def _run(self, found: Callable[..., Any], *given: Any, **options: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            return found(*given, **options)
        finally:
            torch.set_num_threads(before)


@pytest.fixture(
    params=[*OURS, "amx in software", *(pytest.param(f"{isa} in QEMU", marks=pytest.mark.slow) for isa in ARM)]
)
def kernels(request: pytest.FixtureRequest) -> TwoThreads:
    isa, _, how = request.param.partition(" ")
    if how == "in QEMU":
        return TwoThreads(request.getfixturevalue("on_arm")(isa))
    libraries = request.getfixturevalue("emulated") if how else package.libraries()
    found = native.Native(libraries, isa)
    if found.isa != isa:
        pytest.skip(f"this machine or the compiler of these libraries has no {isa}: {found.isa}")
    return TwoThreads(found)


def found(kernels: Kernels, x: Tensor, W: Tensor, b: Tensor, floor: Tensor, **options: Tensor) -> Rows:
    return kernels.above(kernels.pack(W, b, floor), x, **options)


def same(one: Rows, other: Rows) -> bool:
    bits = torch.equal(one.values.view(torch.int32), other.values.view(torch.int32))
    return bits and torch.equal(one.offsets, other.offsets) and torch.equal(one.ids, other.ids)


def dense(rows: Rows, n_features: int) -> Tensor:
    """Absent entries are minus infinity."""
    out = torch.full((len(rows.offsets) - 1, n_features), -INF)
    out[rows.rows, rows.ids.long()] = rows.values
    return out


def problem(T: int, D: int, F: int, seed: int = 0, active: float = 0.02) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, W, b, and floors that a share of the entries exceed."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(F, D, generator=generator) / D**0.5
    x = torch.randn(T, D, generator=generator) + torch.randn(D, generator=generator)
    b = torch.randn(F, generator=generator) / 10
    z = x @ W.T + b
    floor = z.flatten().quantile(1 - active) if z.numel() else torch.tensor(1.0)
    return x, W, b, floor + torch.randn(F, generator=generator) / 10


def assert_above(rows: Rows, x: Tensor, W: Tensor, b: Tensor, floor: Tensor) -> None:
    """What float64 says, outside of ties; ids ascending."""
    z, tie = x.double() @ W.double().T + b.double(), tie_bound(x, W, b)
    got = dense(rows, len(W)).double()
    there = got > -INF
    assert int(there.sum()) == len(rows.ids)
    assert there[z > floor + tie].all()
    assert (z > floor - tie)[there].all()
    assert ((got - z).abs() <= tie)[there].all()
    ascending = rows.ids.diff() > 0
    starts = rows.offsets[1:-1]
    ascending[starts[(starts > 0) & (starts < len(rows.ids))] - 1] = True
    assert ascending.all()


# --- above -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "D", "F"),
    [(300, 96, 500), (70, 100, 33), (5, 7, 1), (17, 1, 97), (1, 2304, 130), (33, 31, 16), (2100, 40, 48)],
)
@pytest.mark.parametrize("active", [0.02, 0.5])
def test_it_finds_what_float64_finds(kernels: Kernels, T: int, D: int, F: int, active: float) -> None:
    x, W, b, floor = problem(T, D, F, active=active)
    assert_above(found(kernels, x, W, b, floor), x, W, b, floor)


def test_no_tokens_give_no_rows(kernels: Kernels) -> None:
    _, W, b, floor = problem(1, 64, 100)
    rows = found(kernels, torch.empty(0, 64), W, b, floor)
    assert rows.offsets.tolist() == [0]
    assert len(rows.ids) == len(rows.values) == 0


@pytest.mark.parametrize("size", [-1e8, 1e8])
def test_a_large_bias_hides_nothing(kernels: Kernels, size: float) -> None:
    """Floors that only a bias reaches: what float32 rounds off there is far more than the search's margin."""
    x, W, _, _ = problem(64, 48, 160)
    x, b, nothing = x * 10, torch.full((160,), size), torch.full((160,), -INF)
    everything = dense(found(kernels, x, W, b, nothing), 160)
    level = everything.sort(dim=1).values[:, 140]
    expected = torch.where(everything > level[:, None], everything, -INF)
    assert (expected > -INF).any(1).sum() > 50
    assert torch.equal(dense(found(kernels, x, W, b, nothing, token_floor=level), 160), expected)
    assert torch.equal(dense(found(kernels, x, W, b, torch.full((160,), float(level[0]))), 160)[0], expected[0])


def test_neither_batch_nor_threads_change_a_bit(kernels: TwoThreads) -> None:
    x, W, b, floor = problem(1100, 200, 300)
    packed = kernels.pack(W, b, floor)
    whole = kernels.above(packed, x)
    assert len(whole.ids)
    for size in (1, 7, 37, 512):
        parts = [kernels.above(packed, part) for part in x.split(size)]
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
        assert torch.equal(torch.cat([part.offsets.diff() for part in parts]), whole.offsets.diff())
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert same(found(kernels.alone, x, W, b, floor), whole)
    torch.set_num_threads(before)


def test_the_instructions_change_no_bit(kernels: Kernels) -> None:
    x, W, b, floor = problem(200, 130, 170)
    best = native.Native(package.libraries(), native.ISAS[-1])
    assert same(found(kernels, x, W, b, floor), found(best, x, W, b, floor))


def test_a_token_may_have_a_floor_of_its_own(kernels: Kernels) -> None:
    x, W, b, floor = problem(150, 80, 120, active=0.2)
    own = torch.where(torch.arange(150) % 3 == 0, floor.mean() + 0.5, -INF)
    without, rows = dense(found(kernels, x, W, b, floor), 120), found(kernels, x, W, b, floor, token_floor=own)
    expected = torch.where(without > own[:, None], without, -INF)
    assert torch.equal(dense(rows, 120), expected)
    assert 0 < len(rows.ids) < int((without > -INF).sum())


@st.composite
def awkward(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """x, W, b whose rows are of very different sizes and lose as much as can be when they are rounded to bfloat16."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    D = draw(st.sampled_from([1, 15, 33, 64, 200]))
    # Just below and above the middle between two neighbours in bfloat16: all elements lose 2^-9, in the same direction.
    worst = draw(st.sampled_from([1 + 2**-8 - 2**-20, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8]))

    def rows(count: int) -> Tensor:
        kinds = [
            torch.randn(count, D, generator=generator),
            torch.full((count, D), worst),
            torch.zeros(count, D),
            torch.randn(count, D, generator=generator).abs()
            * 10.0 ** torch.randint(-20, 15, (count, D), generator=generator),
        ]
        kind = torch.randint(0, len(kinds), (count, 1), generator=generator)
        sizes = torch.tensor(draw(st.lists(st.sampled_from([1.0, 1e-42, 1e-38, 1e-30, 1e3, 1e18, 1e30]), min_size=1)))
        picked = sizes[torch.randint(0, len(sizes), (count, 1), generator=generator)]
        return sum(torch.where(kind == i, one, 0.0) for i, one in enumerate(kinds)).mul(picked).clamp(-3e38, 3e38)

    b = torch.randn(70, generator=generator) * draw(st.sampled_from([0.0, 1.0, 1e30]))
    return rows(45), rows(70), b


@hypothesis.given(awkward())
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_nothing_is_missed_however_awkward_and_near(kernels: Kernels, numbers: tuple[Tensor, ...]) -> None:
    """Each feature's floor is one ulp below, at or above one of its own pre-activations; then each token's is at one."""
    x, W, b = numbers
    everything = dense(found(kernels, x, W, b, torch.full((70,), -INF)), 70)
    exact, tie = x.double() @ W.double().T + b.double(), tie_bound(x, W, b)
    tame = (exact.abs() + tie < 1e38) & (x.double().norm(dim=1)[:, None] * W.double().norm(dim=1) < 1e38)
    assert ((everything - exact).abs() <= tie + 1e-40)[tame].all()

    level = everything.gather(0, torch.randint(0, 45, (1, 70))).squeeze(0)
    level[level.isinf()] = 0
    for floor in (level.nextafter(torch.tensor(-INF)), level, level.nextafter(torch.tensor(INF))):
        expected = torch.where(everything > floor, everything, -INF)
        assert torch.equal(dense(found(kernels, x, W, b, floor), 70), expected)

    level = everything.gather(1, torch.randint(0, 70, (45, 1))).squeeze(1)
    expected = torch.where(everything > level[:, None], everything, -INF)
    nothing = torch.full((70,), -INF)
    assert torch.equal(dense(found(kernels, x, W, b, nothing, token_floor=level), 70), expected)


def test_a_whole_product_lost_in_one_direction_is_still_found(kernels: Kernels) -> None:
    """All elements of x and w are rounded down by nearly 2^-8 of themselves: the proof's bound, nearly reached."""
    x, W = torch.full((40, 512), 1 + 2**-8 - 2**-18), torch.full((40, 512), 1 + 2**-8 - 2**-18)
    z = float(x[0].double() @ W[0].double())
    noise = torch.zeros(4000, 512)  # so that candidates are few
    W = torch.cat([W, noise])
    for below in (1e-6, 1e-4):
        rows = found(kernels, x, W, torch.zeros(len(W)), torch.full((len(W),), z * (1 - below)))
        assert len(rows.ids) == 40 * 40


@pytest.mark.parametrize("D", [1, 2, 33, 600, 5000])
@pytest.mark.parametrize("shape", ["flat", "one large", "random"])
def test_rows_that_lie_along_each_other_reach_the_largest_sum_and_no_further(
    kernels: Kernels, D: int, shape: str
) -> None:
    """Where ‖x‖‖w‖ = x·w the whole numbers of a search by such come as near to 2^31 as they may."""
    generator = torch.Generator().manual_seed(D)
    row = torch.ones(D) if shape == "flat" else torch.randn(D, generator=generator)
    if shape == "one large":
        row[D // 2] = 300
    x, W = row * 10.0 ** torch.arange(-6, 6)[:, None], torch.cat([row.repeat(50, 1), -row.repeat(50, 1)])
    z = x.double() @ W.double().T
    rows = found(kernels, x, W, torch.zeros(100), torch.zeros(100), token_floor=(z.max(1).values * (1 - 1e-5)).float())
    assert torch.equal(dense(rows, 100) > -INF, z > 0)


def test_partial_sums_that_overflow_hide_nothing(kernels: Kernels) -> None:
    """In the order of the search the sum passes minus infinity, or gets lost as NaN; in the order that decides it does
    neither."""
    x, W = torch.zeros(40, 64), torch.zeros(100, 64)
    x[:, [0, 1, 8, 9]], x[:, 2] = 2.0**63, 1.0
    W[0, [0, 1]], W[0, [8, 9]], W[0, 2] = -(2.0**64), 2.0**64, 5.0
    W[1] = torch.finfo(torch.float32).max * (-1.0) ** torch.arange(64)  # infinite in bfloat16
    W[1, :10] = W[1, 10:] = 0
    W[1, 20], W[1, 21] = torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max
    x[:, 20], x[:, 21] = 2e-38, 1.5e-38
    rows = found(kernels, x, W, torch.zeros(100), torch.full((100,), 1.0))
    assert rows.ids.tolist() == [0, 1] * 40
    assert (rows.values[::2] == 5).all()


@pytest.mark.parametrize("size", [1e-39, 3e-38])
def test_what_becomes_zero_in_bfloat16_is_not_lost(kernels: Kernels, size: float) -> None:
    """Denormal numbers by huge ones."""
    x, W = torch.full((40, 64), size), torch.zeros(100, 64)
    W[:5] = 1e37
    z = float(x[0].double() @ W[0].double())
    rows = found(kernels, x, W, torch.zeros(100), torch.full((100,), z * (1 - 1e-5)))
    assert rows.ids.tolist() == list(range(5)) * 40


def test_a_feature_that_fires_everywhere_and_a_token_that_fires_everything(kernels: Kernels) -> None:
    x, W, b, floor = problem(400, 64, 200, active=0.01)
    x[7] *= 1e4
    floor[5] = -INF
    rows = found(kernels, x, W, b, floor)
    assert_above(rows, x, W, b, floor)
    assert (rows.ids == 5).sum() == 400
    assert rows.offsets.diff()[7] > 80


def test_infinite_and_missing_weights_hide_nothing(kernels: Kernels) -> None:
    x, W, b, floor = problem(60, 64, 200)
    before = dense(found(kernels, x, W, b, floor), 200)
    W[3, 5], W[4, 6], b[9] = float("nan"), INF, INF
    after = dense(found(kernels, x, W, b, floor), 200)
    touched = torch.zeros(200, dtype=torch.bool)
    touched[[3, 4, 9]] = True
    assert torch.equal(after[:, ~touched], before[:, ~touched])
    assert (after[:, 3] == -INF).all()
    assert torch.equal(after[:, 4] == INF, x[:, 6] > 0)
    assert (after[:, 9] == INF).all()


def test_weights_may_lie_at_an_odd_address(kernels: Kernels) -> None:
    x, W, b, floor = problem(50, 70, 90)
    memory = torch.empty(W.numel() * 4 + 1, dtype=torch.uint8)
    memory[1:] = W.view(torch.uint8).flatten()
    odd = torch.frombuffer(memory.numpy(), dtype=torch.float32, offset=1, count=W.numel()).view(W.shape)
    assert odd.data_ptr() % 4
    assert same(found(kernels, x, odd, b, floor), found(kernels, x, W, b, floor))


def test_denormals_are_kept_whatever_torch_does_with_them(kernels: Kernels) -> None:
    x, W, b, floor = problem(20, 40, 60)
    x, W, b, floor = x * 1e-20, W * 1e-20, b * 1e-40, floor * 1e-40
    rows = found(kernels, x, W, b, floor)
    torch.set_flush_denormal(True)
    try:
        flushing = found(kernels, x, W, b, floor)
    finally:
        torch.set_flush_denormal(False)
    assert len(rows.ids)
    assert same(rows, flushing)


# --- the others ------------------------------------------------------------------------------------------------------


def sparse(n_rows: int, n_columns: int, share: float) -> Rows:
    kept = torch.rand(n_rows, n_columns, generator=torch.Generator().manual_seed(1)) < share
    kept[::5] = False
    ids = kept.nonzero(as_tuple=True)[1]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return Rows(offsets, ids.to(torch.int32), torch.randn(len(ids), generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("share", [0.002, 0.1])  # by row, by column
def test_dots_are_products_of_rows(kernels: Kernels, share: float) -> None:
    entries, left, right = sparse(300, 500, share), torch.randn(300, 150), torch.randn(500, 150)
    got = kernels.dots(entries.offsets, entries.ids, left, right)
    expected = (left[entries.rows].double() * right[entries.ids.long()].double()).sum(1)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
    torch.set_num_threads(1)
    half = int(entries.offsets[150])
    assert torch.equal(kernels.dots(entries.offsets[:151], entries.ids[:half], left[:150], right), got[:half])


@pytest.mark.parametrize("D", [1, 16, 70, 256, 400])
def test_sums_are_weighted_sums_of_rows(kernels: Kernels, D: int) -> None:
    entries, table = sparse(200, 300, 0.1), torch.randn(300, D)
    got = kernels.sums(entries, table)
    matrix = torch.zeros(200, 300, dtype=torch.float64)
    matrix[entries.rows, entries.ids.long()] = entries.values.double()
    torch.testing.assert_close(got.double(), matrix @ table.double(), rtol=0, atol=1e-4)
    assert not got[::5].any()
    torch.set_num_threads(1)
    assert torch.equal(kernels.sums(entries, table), got)


@pytest.mark.parametrize(("n_rows", "n_columns", "share"), [(50, 80, 0.1), (700, 900, 0.2), (3, 5, 0.0)])
def test_transposed_turns_rows_into_columns(kernels: Kernels, n_rows: int, n_columns: int, share: float) -> None:
    entries = sparse(n_rows, n_columns, share)
    columns, origin = kernels.transposed(entries, n_columns)
    expected, order = entries.transposed(n_columns)
    assert same(columns, expected)
    assert torch.equal(origin, order)


# --- which and whether -----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


@pytest.mark.parametrize(
    ("variables", "most"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "avx2_vnni"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512"),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, "avx512_bf16"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "amx"),
        ({"ONEDNN_MAX_CPU_ISA": "SSE41", "GEMSCOPE_ISA": "avx512"}, "avx512"),
        ({}, "amx"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_variables_limit_the_instructions(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], most: str
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "GEMSCOPE_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kernels = native.load()
    assert (kernels.isa if kernels else "none") == native.Native(package.libraries(), most).isa
    assert native.load() is kernels


@pytest.mark.parametrize(("name", "value"), [("ONEDNN_MAX_CPU_ISA", "SSE41"), ("GEMSCOPE_ISA", "none")])
@pytest.mark.usefixtures("fresh")
def test_variables_can_rule_them_out(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert native.load() is None


@pytest.mark.usefixtures("fresh")
def test_without_the_package_or_with_a_broken_one_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gemscope_native", None)
    assert native.load() is None
    native.load.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(package, "libraries", lambda: tmp_path)
    assert native.load() is None
    native.load.cache_clear()
    (tmp_path / "machine.so").write_bytes(b"not a library")
    assert native.load() is None


def test_what_an_old_compiler_could_not_build_is_gone_without(tmp_path: Path) -> None:
    """The library below it takes its place; with none at all there is nothing to refuse with but the name."""
    libraries = [path for path in package.libraries().iterdir() if path.suffix in {".so", ".dylib", ".dll"}]
    best = native.Native(package.libraries(), native.ISAS[-1]).isa
    for path in libraries:
        if path.stem != best:
            (tmp_path / path.name).symlink_to(path)
    lower = native.Native(tmp_path, native.ISAS[-1]).isa
    assert native.ISAS.index(lower) < native.ISAS.index(best)
    assert lower == native.Native(package.libraries(), native.ISAS[native.ISAS.index(best) - 1]).isa
    for path in tmp_path.iterdir():
        if path.stem != "machine":
            path.unlink()
    assert native.Native(tmp_path, native.ISAS[-1]).isa == "none"


def test_software_amx_is_not_what_is_installed() -> None:
    """The library as installed claims AMX only where the processor has it."""
    machine = next(path for path in package.libraries().iterdir() if path.stem == "machine")
    level = ctypes.CDLL(str(machine)).gsn_isa(len(native.ISAS) - 1)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert level < native.ISAS.index("amx") or "amx_bf16" in flags
