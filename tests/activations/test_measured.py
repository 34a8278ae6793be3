"""How quick a processor is in a number format: measured once for a machine, never trusted further than it is right."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemscope.activations import measured
from gemscope.activations.measured import relative_time
from gemscope.features.kernels import plain

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    relative_time.cache_clear()
    yield tmp_path / "cache" / "measured"
    relative_time.cache_clear()


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The formats that were measured, in turn; the answer is 1.25 each time."""
    taken: list[torch.dtype] = []

    def measure(dtype: torch.dtype) -> float:
        taken.append(dtype)
        return 1.25

    monkeypatch.setattr(measured, "_measured", measure)
    return taken


def ask_again() -> float:
    """As another process would."""
    relative_time.cache_clear()
    return relative_time(HALF)


def test_the_next_process_does_not_measure_again(measurements: list[torch.dtype]) -> None:
    assert [relative_time(HALF), ask_again(), ask_again()] == [1.25] * 3
    assert len(measurements) == 1


def test_another_torch_processor_limit_or_number_of_threads_is_another_machine(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    relative_time(HALF)
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9.9")
        ask_again()
    with monkeypatch.context() as other:
        other.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
        ask_again()
    with monkeypatch.context() as other:
        other.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        ask_again()
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 9999)
        ask_again()
    with monkeypatch.context() as other:
        other.setattr(measured, "_processor", lambda: ["model name: another"])
        ask_again()
    assert len(measurements) == 6
    assert ask_again() == 1.25
    assert len(measurements) == 6


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"1.2",
        b"1.250000\n" * 10**5,
        b"nan\n",
        b"inf\n",
        b"-1.0\n",
        b"0\n",
        b"1e9\n",
        b"\xff\xfe\x00",
        b"bfloat16\n",
    ],
)
def test_what_is_no_answer_is_measured_again_and_replaced(
    measurements: list[torch.dtype], asked_anew: Path, left: bytes
) -> None:
    relative_time(HALF)
    [place] = asked_anew.iterdir()
    place.write_bytes(left)
    assert ask_again() == 1.25
    assert len(measurements) == 2
    assert place.read_bytes() == b"1.250000\n"


def test_nor_does_a_folder_or_a_pipe_in_its_place_stop_anybody(
    measurements: list[torch.dtype], asked_anew: Path
) -> None:
    relative_time(HALF)
    [place] = asked_anew.iterdir()
    place.unlink()
    place.mkdir()
    assert ask_again() == 1.25
    place.rmdir()
    os.mkfifo(place)  # opening one for reading waits for a writer, and the other way round
    assert ask_again() == 1.25
    assert len(measurements) == 3


def test_where_nothing_can_be_written_it_is_measured_each_time(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    assert [relative_time(HALF), ask_again()] == [1.25] * 2

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(measured, "cache_dir", homeless)
    assert ask_again() == 1.25
    assert len(measurements) == 3


def test_formats_are_measured_apart(measurements: list[torch.dtype]) -> None:
    assert [relative_time(HALF), relative_time(torch.float16), ask_again()] == [1.25] * 3
    assert measurements == [HALF, torch.float16]


@pytest.mark.parametrize(
    ("small", "large", "expected", "products"),
    [
        (30.0, 30.0, 30.0, 10),  # no instructions for it: settled at once
        (1.5, 0.9, 0.9, 20),
        (0.4, 0.3, 0.3, 20),
    ],
)
def test_a_processor_without_the_format_is_asked_for_small_products_only(
    monkeypatch: pytest.MonkeyPatch, small: float, large: float, expected: float, products: int
) -> None:
    asked: list[int] = []

    def ratio(dtype: torch.dtype, rows: int, depth: int, columns: int, *, rounds: int) -> float:
        asked.append(rounds)
        assert torch.get_num_threads() == 1
        return small if rows * depth * columns < 10**7 else large

    threads = torch.get_num_threads()
    monkeypatch.setattr(measured, "_ratio", ratio)
    assert relative_time(HALF) == expected
    assert sum(asked) == products
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("told", "search"), [(0.3, torch.bfloat16), (0.9, torch.float32), (4.0, torch.float32)])
def test_the_search_is_in_bfloat16_where_that_is_quick(
    monkeypatch: pytest.MonkeyPatch, told: float, search: torch.dtype
) -> None:
    monkeypatch.setattr(measured, "relative_time", lambda dtype: told)
    assert plain.load().search == search


def test_the_times_are_those_of_products_each_the_best_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes by what is multiplied: 3 s a product in bfloat16 and 2 s in float32, and once far longer."""
    now, spent = [0.0], iter([3.0, 2.0, 3.0, 900.0, 700.0, 2.0])

    class Clock:
        begun = False

        def perf_counter(self) -> float:
            self.begun = not self.begun
            now[0] += 0.0 if self.begun else next(spent)
            return now[0]

    monkeypatch.setattr(measured, "time", Clock())
    assert measured._ratio(HALF, 2, 3, 4, rounds=3) == 1.5


def test_what_is_measured_here_is_likely() -> None:
    assert 0.01 < relative_time(HALF) < 1000
