"""Where a model runs and in which number format when nobody says: what was found out of the machine is given here."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import gemscope as gs
from gemscope.activations import load, measured, suited
from gemscope.activations.suited import Suited, device_of, devices, dtype_for, free_memory
from gemscope.errors import InputError
from gemscope.testing import tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TEXT = ["The theory and the thing", "it"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for half-width formats."""
    monkeypatch.setattr(measured, "relative_time", lambda dtype: 3.9)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "relative_time", lambda dtype: 0.3)


@pytest.fixture(params=["llama", "gemma2", "gemma3", "granite"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model on disk, in bfloat16."""
    model = tiny_model(request.param, dtype=BF16)
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("time", "format_", "taken"),
    [
        (0.3, BF16, BF16),
        (1.3, BF16, BF16),  # emulated well: a little slower at reading, and quicker at writing one row
        (2.0, BF16, BF16),
        (2.1, BF16, F32),
        (3.9, BF16, F32),
        (3.9, F16, F32),
        (3.9, F32, F32),
        (3.9, torch.float64, torch.float64),
    ],
)
def test_a_format_that_is_slow_here_gives_way_to_float32(
    monkeypatch: pytest.MonkeyPatch, time: float, format_: torch.dtype, taken: torch.dtype
) -> None:
    asked: list[torch.dtype] = []

    def told(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return time

    monkeypatch.setattr(measured, "relative_time", told)
    assert dtype_for(format_, CPU, 1000).dtype == taken
    assert asked == ([format_] if format_ in (BF16, F16) else [])


def test_a_gpu_keeps_what_is_stored_whatever_the_processor_is(slow: None) -> None:
    assert dtype_for(BF16, GPU, None) == Suited(BF16)
    assert dtype_for(F16, torch.device("mps"), None) == Suited(F16)


def test_what_would_not_fit_stays_as_it_is_and_says_why(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suited, "free_memory", lambda: 10_000)
    assert dtype_for(BF16, CPU, 2_000) == Suited(F32, "stored in bfloat16, which is slow here")
    assert dtype_for(BF16, CPU, 2_001) == Suited(
        BF16, "slow here, but in float32 its weights would take 8.0 kB of 10.0 kB free"
    )
    assert dtype_for(BF16, CPU, None).dtype == F32  # what cannot be counted is small: a new kind of model
    monkeypatch.setattr(suited, "free_memory", lambda: None)
    assert dtype_for(BF16, CPU, 1 << 60).dtype == F32


def test_what_is_free_is_known_where_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    here = free_memory()
    assert here is not None
    assert here > 1 << 24
    read = Path.read_text

    def files(meminfo: str | None, container: str | None) -> Callable[..., str]:
        def text(path: Path, **options: str) -> str:
            known = {"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": container}
            if str(path) not in known:
                return read(path, **options)
            if (said := known[str(path)]) is None:
                raise FileNotFoundError(path)
            return said

        return text

    meminfo = "MemTotal:       100 kB\nMemFree:    1 kB\nMemAvailable:    40 kB\n"
    for container, free in ((None, 40960), ("max\n", 40960), ("30000\n", 30000), ("50000", 40960)):
        monkeypatch.setattr(Path, "read_text", files(meminfo, container))
        assert free_memory() == free
    monkeypatch.setattr(Path, "read_text", files(None, None))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
    assert free_memory() == 20480
    monkeypatch.delattr(os, "sysconf")
    assert free_memory() is None


# --- models ------------------------------------------------------------------------------------------------------------


def test_a_model_stored_in_bfloat16_computes_in_float32_what_its_weights_say(stored: Path, slow: None) -> None:
    model = gs.load_model(stored)
    assert model.dtype == F32
    assert model.computed == "float32 on cpu (stored in bfloat16, which is slow here)"
    weights = transformers.AutoModelForCausalLM.from_pretrained(stored, dtype=F32)
    with torch.no_grad():
        tokens = model.tokens(TEXT[0])
        assert torch.equal(model.logits(TEXT[0]), weights(tokens.ids).logits)


def test_it_stays_as_stored_where_that_is_quick_or_asked_for(stored: Path, quick: None) -> None:
    assert gs.load_model(stored).computed == "bfloat16 on cpu"
    assert gs.load_model(stored, dtype="float32").computed == "float32 on cpu"


def test_what_is_asked_for_is_not_argued_with(stored: Path, slow: None) -> None:
    assert gs.load_model(stored, dtype="bfloat16").computed == "bfloat16 on cpu"
    assert gs.load_model(stored, device_map={"": "cpu"}).dtype == BF16


def test_where_the_configuration_is_silent_the_weights_say_what_they_are_stored_in(stored: Path, slow: None) -> None:
    path = stored / "config.json"
    config = json.loads(path.read_text())
    silent = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    assert silent != config
    path.write_text(json.dumps(silent))
    model = gs.load_model(stored)
    assert model.computed == "float32 on cpu (stored in bfloat16, which is slow here)"
    path.write_text(json.dumps(config))
    assert torch.equal(model.logits(TEXT), gs.load_model(stored, dtype="float32").logits(TEXT))


def test_a_model_too_large_for_float32_is_loaded_as_stored(
    stored: Path, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suited, "free_memory", lambda: 1000)
    model = gs.load_model(stored)
    assert model.computed.startswith("bfloat16 on cpu (slow here, but in float32 its weights would take ")
    kept = sum(weight.numel() for weight in model.hf.parameters())  # tied ones once
    assert suited.decimal(4 * kept) in model.computed


def test_quantised_weights_are_left_to_those_who_quantised_them() -> None:
    assert load._stored({"dtype": "bfloat16", "quantization_config": {}}) is None
    assert load._stored({"torch_dtype": "bfloat16"}) == BF16
    assert load._stored({"text_config": {"dtype": "float16"}}) == F16
    assert [load._stored(config) for config in ({}, {"dtype": "nn"}, {"dtype": None})] == [None] * 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own use of transformers
def test_an_adapter_is_put_on_a_model_in_the_format_that_is_quick_here(tmp_path: Path, slow: None) -> None:
    import peft

    model = tiny_model("llama", dtype=BF16)
    model.hf.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert gs.load_model(tmp_path / "adapter").computed.startswith("float32 on cpu (stored in bfloat16")


# --- devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "mps", "taken", "there"),
    [
        (2, True, "cuda:1", ["cuda:0", "cuda:1", "mps", "cpu"]),
        (0, True, "mps", ["mps", "cpu"]),
        (0, False, "cpu", ["cpu"]),
    ],
)
def test_the_first_there_is_of_cuda_mps_and_the_processor(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, taken: str, there: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(device_of("auto")) == str(device_of(None)) == taken
    assert devices() == there
    assert device_of("cpu") == CPU


def test_a_device_that_is_not_there_is_one_line_that_names_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suited, "devices", lambda: ["mps", "cpu"])
    for asked in ("cuda:99", "gpu", "", "cuda:-1", "xpu"):
        with pytest.raises(InputError) as raised:
            device_of(asked)
        assert str(raised.value).startswith(f"device {asked!r} cannot be used: ")
        assert str(raised.value).endswith("; here there is mps, cpu")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="cannot be used"):
        gs.load_sae("smollm2", device="cuda:99")


def test_values_on_a_device_without_float64_go_to_the_processor_and_others_stay() -> None:
    there = torch.zeros(2, device="meta")
    assert suited.with_float64(there) is there

    class OnMPS(torch.Tensor):
        device = torch.device("mps")  # type: ignore[assignment]

        def cpu(self, *given: object, **options: object) -> torch.Tensor:
            return torch.ones(2)

    assert torch.equal(suited.with_float64(torch.zeros(2).as_subclass(OnMPS)), torch.ones(2))
