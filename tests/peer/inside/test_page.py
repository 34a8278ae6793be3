"""The code of docs/libraries.md that needs other libraries runs as it stands there."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import gemscope as gs
from by_hand import random_sae
from gemscope.testing import tiny_model
from peer.inside.hooked import hooked_of

PAGE = (Path(__file__).parents[3] / "docs" / "libraries.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n+```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def run(section: str, names: dict[str, Any]) -> None:
    code = SECTIONS[section].replace('"openai-community/gpt2"', "folder")
    exec(compile(code, section, "exec"), names)


def test_saelens(tmp_path: Path) -> None:
    import sae_lens

    original = random_sae(tiny_model("llama"))
    names = {"gs": gs, "sae_lens": sae_lens, "folder": gs.save_sae(original, tmp_path)}
    run("SAELens", names)
    assert names["sae"].digest == original.digest
    assert torch.equal(names["again"].W_enc, original.W_enc)


@pytest.mark.parametrize("section", ["nnsight", "TransformerLens"])
def test_models(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nnsight
    from transformer_lens.model_bridge import TransformerBridge

    tiny = tiny_model("gpt2", layers=7)
    tiny.hf.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    # Neither finds a tokenizer in a folder by itself.
    given = {"tokenizer": transformers.AutoTokenizer.from_pretrained(tmp_path)}
    monkeypatch.setattr(nnsight, "LanguageModel", functools.partial(nnsight.LanguageModel, **given))
    names = {"gs": gs, "nnsight": nnsight, "TransformerBridge": TransformerBridge, "folder": str(tmp_path)}
    run(section, names)
    expected = tiny.capture("The Golden Gate", ["6.res"])["6.res"].values
    torch.testing.assert_close(names["acts"].values, expected, atol=2e-5, rtol=1e-4)


def test_hooked_transformers(tmp_path: Path) -> None:
    tiny = tiny_model("gpt2", layers=7)
    tiny.hf.save_pretrained(tmp_path / "gpt2")
    tiny.tokenizer.save_pretrained(tmp_path / "gpt2")
    known = SimpleNamespace(from_pretrained_no_processing=lambda _: hooked_of(tmp_path / "gpt2", "gpt2"))
    names: dict[str, Any] = {"gs": gs, "HookedTransformer": known}  # which itself knows published models alone
    run("HookedTransformer", names)
    expected = tiny.capture("The Golden Gate", ["6.res"])["6.res"].values
    torch.testing.assert_close(names["acts"].values, expected, atol=2e-5, rtol=1e-4)
