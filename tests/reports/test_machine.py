"""What `gemscope info --machine` says: what was found out of a machine is given here, but for one look at this one."""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from gemscope.activations import measured, suited
from gemscope.cli.main import main
from gemscope.features.kernels import choice, native, triton_gpu
from gemscope.reports import machine as machines
from gemscope.reports.machine import machine


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2, nothing installed beside, four cores of which torch uses one; with rates that need no measuring."""
    monkeypatch.setattr(machines, "_rate", lambda dtype, device: 100.0 * dtype.itemsize)
    monkeypatch.setattr(machines, "_encoded", lambda name, device: {"native": 2000.0, "torch": 500.0}.get(name, 9000.0))
    monkeypatch.setattr(measured, "relative_time", lambda dtype: 3.9)
    monkeypatch.setattr(suited, "devices", lambda: ["cpu"])
    monkeypatch.setattr(suited, "device_of", lambda asked: torch.device("cpu"))
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for variable in ("GEMSCOPE_ISA", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})


def test_a_laptop_is_told_what_is_chosen_and_what_it_lacks(laptop: None) -> None:
    found = machine()
    assert [(one.name, one.taken) for one in found.formats] == [
        ("float32", "float32"),
        ("bfloat16", "float32: products take 3.9 × the time"),
        ("float16", "float32: products take 3.9 × the time"),
    ]
    assert [one.gflops for one in found.formats] == [400, 200, 200]
    assert {one.name: one.obstacle for one in found.kernels} == {
        "triton": "for GPUs of CUDA",
        "native": "gemscope-native is not installed",
        "torch": None,
    }
    assert found.advice == (
        "install gemscope-native: SAEs encode and train several times as fast on this processor",
        "torch uses 1 of 4 cores: is OMP_NUM_THREADS set?",
        "no quick bfloat16 here, so models run in float32: AVX512-BF16, AMX or a GPU would read faster",
    )
    printed = str(found)
    assert "AVX2, 1 thread on 4 cores" in printed
    assert "chosen: models on cpu, SAEs on cpu" in printed
    assert "What would make it faster" in printed


def test_a_processor_that_the_native_kernels_are_for_is_told_of_them(
    laptop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "relative_time", lambda dtype: 0.3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert machine().advice == (
        "install gemscope-native: SAEs encode and train several times as fast on this processor",
    )
    monkeypatch.setattr(native, "find_spec", lambda name: object())
    assert native.obstacle() == "gemscope-native is installed and cannot be used: install it again"
    monkeypatch.setenv("GEMSCOPE_ISA", "none")
    assert native.obstacle() == "ruled out by GEMSCOPE_ISA or ONEDNN_MAX_CPU_ISA"
    monkeypatch.delenv("GEMSCOPE_ISA")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert native.obstacle() == "for x86 processors with AVX2, and ARM's"
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert native.obstacle() == "gemscope-native is installed and cannot be used: install it again"
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert native.obstacle() == "for x86 processors with AVX2, and ARM's"
    monkeypatch.setattr(native, "load", object)
    assert native.obstacle() is None
    assert str(machine()).count("taken") == 1
    assert not machine().advice


def test_a_gpu_comes_first_and_keeps_formats_as_they_are_stored(laptop: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(suited, "devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(suited, "device_of", lambda asked: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A card {device.index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**10, 2 * 10**10))
    monkeypatch.setattr(triton_gpu, "load", lambda device: object())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    found = machine()
    assert [(one.name, one.what, one.memory) for one in found.devices[:2]] == [
        ("cuda:1", "A card 1", 10**10),
        ("cuda:0", "A card 0", 10**10),
    ]
    assert [one.taken for one in found.formats] == ["float32", "bfloat16", "float16"]
    assert [(one.name, one.obstacle) for one in found.kernels] == [
        ("triton", None),
        ("native", "for processors"),
        ("torch", None),
    ]
    assert not found.advice
    assert "10.0 GB" in str(found)
    monkeypatch.setattr(triton_gpu, "load", lambda device: None)
    monkeypatch.setattr(triton_gpu, "find_spec", lambda name: None)
    assert machine().advice == ("install triton: SAEs encode and train several times as fast on this GPU",)
    monkeypatch.setattr(triton_gpu, "find_spec", lambda name: object())
    assert "capability 8.0" in str(triton_gpu.obstacle(gpu))


def test_a_card_that_torch_cannot_use_is_told_of(laptop: None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0" or there(path))
    assert "there is an NVIDIA GPU, but this torch cannot use it: install torch with CUDA" in machine().advice


def test_the_shell_measures_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--machine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    running = {one["name"] for one in found["kernels"] if one["obstacle"] is None}
    assert running == {one["name"] for one in found["kernels"] if one["tokens"] is not None}
    assert "torch" in running
    assert all(one["gflops"] > 0 for one in found["formats"])
    assert found["threads"] == torch.get_num_threads()
    assert [one["name"] for one in found["devices"]] == suited.devices()


def test_the_kernels_are_asked_for_about_fifty_features_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def once(work: object) -> float:
        found.append(work())  # type: ignore[operator]
        return 0.5

    monkeypatch.setattr(machines, "_best", once)
    assert machines._encoded("torch", torch.device("cpu")) == machines._TOKENS / 0.5
    assert 40 < found[0] / machines._TOKENS < 60
    assert machines._rate(torch.float32, torch.device("cpu")) == pytest.approx(2 * 256 * 1024 * 1024 / 0.5 / 1e9)
    assert found[1] == 1024
    assert list(choice.known(torch.device("cpu"))) == list(choice._KNOWN)


def test_of_a_machine_and_an_sae_one_is_told_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["info", "smollm2", "--machine"])
    assert ended.value.code == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_where_the_processor_has_no_name_its_kind_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(path: Path, **options: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(machines.platform, "processor", lambda: "")
    monkeypatch.setattr(machines.platform, "machine", lambda: "arm64")
    assert machines._processor() == "arm64"
