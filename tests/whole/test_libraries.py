"""The code of docs/libraries.md runs as it stands there, on a model of a few kilobytes in GPT-2's place; what it gives is
held by the tests that the page names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import gemscope as gs
from gemscope.testing import tiny_model

PAGE = (Path(__file__).parents[2] / "docs" / "libraries.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n+```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
KNOWN: dict[str, Any] = {"gs": gs, "transformers": transformers, "peft": peft}


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """What the page's code sees, one section after the other."""
    tiny = tiny_model("gpt2", layers=7)
    tiny.hf.save_pretrained(tmp_path / "gpt2")
    tiny.tokenizer.save_pretrained(tmp_path / "gpt2")
    return {**KNOWN, "folder": str(tmp_path / "gpt2")}


def run(section: str, names: dict[str, Any]) -> None:
    code = SECTIONS[section].replace('"openai-community/gpt2"', "folder")
    exec(compile(code, section, "exec"), names)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out")  # PEFT's own use of transformers
def test_the_page_s_code_reads_models_of_transformers_and_peft(page: dict[str, Any]) -> None:
    for section in ("transformers", "PEFT"):
        run(section, page)
        assert page["acts"].site == gs.Site(6, "res")
        assert page["acts"].values.shape[-1] == 32
    assert page["model"].name.endswith(" with the adapter default")


def test_the_page_s_code_hands_feature_activations_on(at_hand: None) -> None:
    names = dict(KNOWN)
    run("Arrays and data frames", names)
    acts = names["acts"]
    assert torch.equal(names["again"].to_dense(), acts.to_dense())
    assert torch.equal(torch.from_numpy(names["matrix"].toarray()), acts.to_dense().reshape(-1, acts.d_sae))
    dense = acts.to_dense().reshape(-1, acts.d_sae).max(0).values
    assert torch.equal(torch.tensor(names["strongest"].to_numpy()), dense[names["strongest"].index.to_numpy()])


def test_the_page_s_code_saves_for_sparsify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {**KNOWN, "folder": "openai-community/gpt2"}
    run("sparsify and circuit-tracer", names)
    assert names["folder"] == Path("run/h.6")
    assert names["again"].digest == names["sae"].digest
