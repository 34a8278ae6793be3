"""GGUF files of the user's own: read as plain weights, with the tokenizer's own rule about BOS, or one line says what to
do. The truth is the model whose weights were written into the file with llama.cpp's own writer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gemscope as gs
from by_hand import TEXT, random_sae
from gemscope.activations.load import load_tokenizer
from gemscope.errors import CorruptFile, InputError, MissingDependency, ModelNotFound
from gemscope.testing import tiny_model
from ggufs import written

pytest.importorskip("gguf", reason="the reader of GGUF files is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate alone")


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


def test_what_is_no_name_is_one_clear_line(unchecked: None) -> None:
    model = tiny_model("llama")
    with pytest.raises(
        InputError, match=r"this LlamaForCausalLM does not say .* load_model\(model, tokenizer=tokenizer"
    ) as raised:
        gs.load_model(model.hf)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    for name in ("a" * 100_000, "a\0b", "~nobody-here/x"):
        with pytest.raises(ModelNotFound, match="no model") as raised:
            gs.load_model(name)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300
