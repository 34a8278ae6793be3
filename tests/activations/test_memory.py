"""What finds no room on a device is one line that says what does, and what it says is so. The device is pretended, and
has room for as much as is given here.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import gemscope as gs
from gemscope.activations import memory
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.cli.main import main
from gemscope.errors import InputError, OutOfMemory
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import D_MODEL, tiny_model
from gemscope.text.corpus import Corpus
from pretended import pretended

TEXT = ["the rivers and the hours sang in one and in two " * 4] * 16
HUGE = 1 << 50


def wide_sae(d_sae: int = 64) -> SAE:
    sae = SAE(D_MODEL, d_sae, gate="relu", site="1.res", info=SAEInfo(name="wide"))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return sae


def number(pattern: str, error: object) -> int:
    found = re.search(pattern, str(error))
    assert found is not None, error
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ..."), 3 << 29),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore."), 20 << 20),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 2.00 GB on pool."), 2 << 30),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 0),
        (MemoryError(), 0),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_errors_of_memory_are_told_from_others(error: Exception, asked: int | None) -> None:
    assert memory.lacking(error) == asked


def test_what_torch_and_numpy_say_on_a_processor_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(HUGE)
    assert memory.lacking(raised.value) == 4 * HUGE
    with pytest.raises(MemoryError) as refused:
        np.zeros(HUGE, np.float32)
    assert memory.lacking(refused.value) == 4 * HUGE


def test_other_errors_pass_and_are_not_asked_what_would_fit() -> None:
    def never() -> str:
        raise AssertionError

    with pytest.raises(ZeroDivisionError), memory.room("work", torch.device("cpu"), never):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="no matter"), memory.room("work", torch.device("cpu"), never):
        raise RuntimeError("no matter")
    with pytest.raises(OutOfMemory, match=r"^x$"), memory.room("work", torch.device("cpu"), never):
        raise OutOfMemory("x")  # said already by who knows more


def test_weights_that_do_not_fit_say_in_which_format_they_would(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    size = sum(weight.nbytes for weight in model.hf.parameters())
    for room, said in ((size * 3 // 4, "in bfloat16 .* fits; or take another device"), (size // 4, "a smaller model")):
        with pretended(room) as (device, traffic), pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "free_on", lambda device, traffic=traffic: traffic.room)
            with pytest.raises(
                OutOfMemory, match=rf"^{device} has no room for \S+, which takes .*: .*{said}"
            ) as raised:
                gs.load_model(tmp_path, device=device)
            assert isinstance(raised.value, InputError)
            assert traffic.room == room  # what had got there has gone again
            if "bfloat16" in said:
                assert gs.load_model(tmp_path, device=device, dtype="bfloat16").device == device


def test_an_sae_that_does_not_fit_says_how_wide_a_one_would(tmp_path: Path) -> None:
    gs.save_sae(wide_sae(256), tmp_path / "sae")
    with pretended(30_000) as (device, traffic), pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_on", lambda device: traffic.room)
        with pytest.raises(
            OutOfMemory, match=r"has no room for .*, which takes .* of 256; or put this one on"
        ) as raised:
            gs.load_sae(tmp_path / "sae", device=device)
        fitting = number(r"an SAE of up to ([\d,]+) such features fits", raised.value)
        assert 64 < fitting < 128
        gs.save_sae(wide_sae(fitting), tmp_path / "narrow")
        assert gs.load_sae(tmp_path / "narrow", device=device).W_enc.device == device


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_that_do_not_fit_are_told_how_many_would(family: str) -> None:
    model = tiny_model(family)
    reads = model.tokens(TEXT)
    with pretended(1 << 30) as (device, traffic):
        model.hf.to(device)
        traffic.room = 3_000_000
        with pytest.raises(
            OutOfMemory, match=rf"^{device} has no room for 16 × \d+ tokens through tiny-{family}"
        ) as raised:
            model.logits(reads)
        assert traffic.room >= 3_000_000 - 8 * reads.ids.numel()  # all but its ids is free again
        assert "\n" not in str(raised.value)
        fitting = number(r"(\d+) at a time fit \(batch=", raised.value)
        assert 1 <= fitting < 16
        assert f"--batch {fitting})" in str(raised.value)
        assert "dtype='bfloat16'" in str(raised.value)
        model.logits(reads.first(fitting, reads.ids.shape[1]))
        if 2 * fitting < 16:
            with pytest.raises(OutOfMemory):
                model.logits(reads.first(2 * fitting, reads.ids.shape[1]))


def test_one_row_that_does_not_fit_is_told_how_long_a_one_would() -> None:
    model = tiny_model("llama")
    reads = model.tokens(TEXT[:1])
    with pretended(1 << 30) as (device, traffic):
        model.hf.to(device)
        traffic.room = 30_000
        with pytest.raises(OutOfMemory, match="has no room for 1 ×") as raised:
            model.capture(reads, ["2.res"], every_token=True)
        fitting = number(r"one row of (\d+) fits", raised.value)
        model.capture(reads.first(1, fitting), ["2.res"], every_token=True)
        traffic.room = 2_000
        with pytest.raises(OutOfMemory, match=r": load the model in half the bytes .* take another device \(cpu\)$"):
            model.capture(reads, ["2.res"], every_token=True)


def test_a_pass_under_edits_and_behind_a_cache_is_one_line_too_and_leaves_no_trace() -> None:
    model = tiny_model("llama")
    sae = wide_sae()
    with pretended(1 << 30) as (device, traffic):
        model.hf.to(device)
        sae.to(device)
        before = model.logits(TEXT[:1]).cpu()
        with model.edited(gs.Steer(sae, 3, 2.0)):
            traffic.room = 30_000
            with pytest.raises(OutOfMemory, match=r"one row of \d+ fits"):
                model.logits(TEXT[:1])
        traffic.room = 30_000
        with pytest.raises(OutOfMemory):
            model.generate(TEXT[:1], max_new_tokens=2)
        traffic.room = 1 << 30
        assert torch.equal(model.logits(TEXT[:1]).cpu(), before)
        model.hf.to("cpu")


def test_tokens_that_an_sae_has_no_room_for_are_told_how_many_would() -> None:
    sae = wide_sae(128)
    x = torch.randn(512, D_MODEL, generator=torch.Generator().manual_seed(1))
    with pretended(1 << 30) as (device, traffic):
        sae.to(device)
        there = x.to(device)
        traffic.room = 300_000
        with pytest.raises(
            OutOfMemory, match=r"has no room for 512 tokens through wide with its 128 features"
        ) as raised:
            sae.encode(there)
        fitting = number(r"([\d,]+) tokens at a time fit", raised.value)
        assert sae.encode(there[:fitting]).n_tokens == fitting
        sae.prepared = None
        traffic.room = 1_000
        with pytest.raises(OutOfMemory, match=r"take an SAE of fewer features.*, or put it on another device \(cpu\)$"):
            sae.encode(there)


def test_every_way_through_text_says_it_in_one_line(tmp_path: Path) -> None:
    model, sae, corpus = tiny_model("llama"), wide_sae(), Corpus.of(TEXT)
    labelled = [(text, "ab"[index % 2]) for index, text in enumerate(f"{text} {n}" for n, text in enumerate(TEXT))]
    ways = {
        "harvest": lambda: gs.harvest(model, corpus, ["1.res"], to=tmp_path / "harvest", length=32, batch=8),
        "describe": lambda: gs.describe(
            model, sae, corpus, to=tmp_path / "atlas", config=DescribeConfig(length=32, batch=8, before=4, after=4)
        ),
        "score": lambda: gs.score(model, sae, corpus, length=32, batch=8),
        "probe": lambda: gs.sparse_probe(model, sae, labelled, length=32, batch=8),
        "look": lambda: gs.look(model, sae, TEXT[0]),
        "check": lambda: gs.check(model, sae, corpus),
        "attribute": lambda: gs.attribute(model, sae, TEXT[0]),
        "effect": lambda: gs.effect(model, "1.res", corpus, tokens=64),
    }
    with pretended(1 << 30) as (device, traffic):
        model.hf.to(device)
        sae.to(device)
        model.capture(TEXT[0], ["1.res"])  # which has it measure what is an attention sink
        for way in ways.values():
            traffic.room = 60_000
            with pytest.raises(OutOfMemory, match=f"^{device} has no room for .*: "):
                way()
    assert not list(tmp_path.glob("*"))  # nothing half-written


def test_the_shell_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OutOfMemory("no room: less"),
    ):

        def full(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("gemscope.activations.load.load_model", full)
        assert main(["look", "Hello"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert re.match("gemscope: (out of memory|no room: less)", said)
    monkeypatch.setattr("gemscope.activations.load.load_model", lambda *_, **__: {}["a fault of ours"])
    with pytest.raises(KeyError):
        main(["look", "Hello"])
