"""Which number format the search uses: measured once for a machine, and never trusted further than it is right."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemscope.features.kernels import measured
from gemscope.features.kernels.measured import fastest


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    fastest.cache_clear()
    yield tmp_path / "cache" / "kernels"
    fastest.cache_clear()


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The answers that were measured, in turn; bfloat16 each time."""
    taken: list[torch.dtype] = []

    def measure() -> torch.dtype:
        taken.append(torch.bfloat16)
        return taken[-1]

    monkeypatch.setattr(measured, "_measured", measure)
    return taken


def ask_again() -> torch.dtype:
    """As another process would."""
    fastest.cache_clear()
    return fastest()


def test_the_next_process_does_not_measure_again(measurements: list[torch.dtype]) -> None:
    assert [fastest(), ask_again(), ask_again()] == [torch.bfloat16] * 3
    assert len(measurements) == 1


def test_another_torch_processor_limit_or_number_of_threads_is_another_machine(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest()
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
    assert ask_again() == torch.bfloat16
    assert len(measurements) == 6


@pytest.mark.parametrize("left", [b"", b"bfloa", b"bfloat16\n" * 10**5, b"complex64", b"\xff\xfe\x00", b"BFLOAT16"])
def test_what_is_no_answer_is_measured_again_and_replaced(
    measurements: list[torch.dtype], asked_anew: Path, left: bytes
) -> None:
    fastest()
    [place] = asked_anew.iterdir()
    place.write_bytes(left)
    assert ask_again() == torch.bfloat16
    assert len(measurements) == 2
    assert place.read_bytes() == b"bfloat16"


def test_nor_does_a_folder_or_a_pipe_in_its_place_stop_anybody(
    measurements: list[torch.dtype], asked_anew: Path
) -> None:
    fastest()
    [place] = asked_anew.iterdir()
    place.unlink()
    place.mkdir()
    assert ask_again() == torch.bfloat16
    place.rmdir()
    os.mkfifo(place)  # opening one for reading waits for a writer, and the other way round
    assert ask_again() == torch.bfloat16
    assert len(measurements) == 3


def test_where_nothing_can_be_written_it_is_measured_each_time(
    measurements: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    assert [fastest(), ask_again()] == [torch.bfloat16] * 2

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(measured, "cache_dir", homeless)
    assert ask_again() == torch.bfloat16
    assert len(measurements) == 3


@pytest.mark.parametrize(
    ("small", "large", "expected", "products"),
    [
        (30.0, 30.0, torch.float32, 3),  # no instructions for bfloat16: settled at once
        (1.5, 0.9, torch.float32, 23),  # emulated well, but nothing gained
        (0.4, 0.3, torch.bfloat16, 23),
    ],
)
def test_a_processor_without_bfloat16_is_asked_for_three_small_products_only(
    monkeypatch: pytest.MonkeyPatch, small: float, large: float, expected: torch.dtype, products: int
) -> None:
    asked: list[int] = []

    def ratio(rows: int, depth: int, columns: int, *, rounds: int) -> float:
        asked.append(rounds)
        return small if rows * depth * columns < 10**7 else large

    monkeypatch.setattr(measured, "_ratio", ratio)
    assert fastest() == expected
    assert sum(asked) == products


def test_what_is_measured_here_is_one_of_the_two() -> None:
    assert fastest() in (torch.bfloat16, torch.float32)
