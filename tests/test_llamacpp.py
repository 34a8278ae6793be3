"""GGUF files of the user's own: read as plain weights, with the tokenizer's own rule about BOS, or one line says what to
do. The truth is the model whose weights were written into the file with llama.cpp's own writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

import gemscope as gs
from by_hand import TEXT, random_sae
from gemscope.activations.load import load_tokenizer
from gemscope.activations.model import LanguageModel
from gemscope.errors import CorruptFile, InputError, MissingDependency, ModelNotFound
from gemscope.testing import VOCAB, tiny_model

gguf = pytest.importorskip("gguf", reason="the reader of GGUF files is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate alone")

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def side_by_side(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a rotary pair next to one another, as llama.cpp keeps them; half a head apart in transformers."""
    count, width = rows.shape
    return rows.reshape(heads, 2, count // heads // 2, width).swapaxes(1, 2).reshape(count, width)


def written(path: Path, *, bos: bool | None, half: bool = False) -> LanguageModel:
    """A tiny llama's weights, configuration and tokenizer in a GGUF file; and the model."""
    model = tiny_model("llama")
    config = model.hf.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCAB)
    state = json.loads(model.tokenizer.backend_tokenizer.to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    tokens += [f"<unused{index}>" for index in range(VOCAB - len(tokens))]
    control = set(model.tokenizer.all_special_tokens) | {"<|endoftext|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control or token.startswith("<unused") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(0)
    if bos is not None:
        writer.add_add_bos_token(bos)
    for name, weight in model.hf.state_dict().items():
        rows = weight.float().numpy()
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            if parts[2] in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in parts[2] else config.num_key_value_heads
                rows = side_by_side(rows, heads)
            called = f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            called = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + ".weight"
        rows = rows.astype(np.float16) if half and rows.ndim > 1 else rows
        writer.add_tensor(called, np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_read_as_the_model_that_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = written(tmp_path / "tiny.gguf", bos=False)
    for place in (tmp_path / "tiny.gguf", str(tmp_path / "tiny.gguf"), tmp_path):
        model = gs.load_model(place)
        assert model.origin == "a GGUF file"
        assert model.dtype == torch.float32
        assert model.tokens(TEXT).ids.tolist() == truth.tokens(TEXT).ids.tolist()
        torch.testing.assert_close(model.logits(TEXT), truth.logits(TEXT), atol=1e-5, rtol=1e-5)
        seen = [gs.look(one, random_sae(truth), TEXT).tokens for one in (model, truth)]
        assert [one.token for one in seen[0]] == [one.token for one in seen[1]]
    assert capsys.readouterr().err == ""  # transformers would draw a bar
    assert gs.load_model(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(tmp_path)(TEXT)["input_ids"] == truth.tokens(TEXT).ids[0].tolist()


@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_put_in_front_where_the_file_says_so(bos: bool, tmp_path: Path) -> None:
    truth = written(tmp_path / "tiny.gguf", bos=bos, half=True)
    ids = gs.load_model(tmp_path).tokens(TEXT).ids[0].tolist()
    assert ids == [truth.tokenizer.bos_token_id] * bos + truth.tokens(TEXT).ids[0].tolist()


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "some" / name).write_bytes(b"GGUF")
    (tmp_path / "part-00001-of-00003.gguf").write_bytes(b"GGUF")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(range(64)))
    for place, kind, says in (
        (tmp_path / "some", InputError, r"has 2 GGUF files \(a\.gguf, b\.gguf\): give the path"),
        (tmp_path / "part-00001-of-00003.gguf", InputError, "one part of several"),
        (tmp_path / "broken.gguf", CorruptFile, "cannot be read as a GGUF file"),
        (tmp_path / "none.gguf", ModelNotFound, "is not there"),
    ):
        with pytest.raises(kind, match=says) as raised:
            gs.load_model(place)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr("gemscope.activations.llamacpp.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="gguf and accelerate"):
        gs.load_model(tmp_path / "broken.gguf")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types as users meet them: in the tests alone beartype stands before our own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_what_is_no_name_is_one_clear_line(unchecked: None) -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"a LlamaForCausalLM was given: .* LanguageModel\(model, tokenizer") as raised:
        gs.load_model(model.hf)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    for name in ("a" * 100_000, "a\0b", "~nobody-here/x"):
        with pytest.raises(ModelNotFound, match="no model") as raised:
            gs.load_model(name)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300
