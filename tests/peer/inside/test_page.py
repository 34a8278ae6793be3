"""The code of docs/libraries.md that needs other libraries runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import gemscope as gs
from by_hand import random_sae
from gemscope.testing import tiny_model

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
