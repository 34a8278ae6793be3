"""Vectors that folding reads: one that does not fit is named before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemscope.errors import CorruptFile
from gemscope.features.load import load_sae

D, F = 6, 16
PLAIN = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
GATED = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,), "b_gate": (F,), "b_mag": (F,), "r_mag": (F,)}
KINDS = {"standard": PLAIN, "jumprelu": PLAIN | {"log_threshold": (F,)}, "gated": GATED}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [(kind, name) for kind, shapes in KINDS.items() for name, shape in shapes.items() if len(shape) == 1],
)
def test_a_vector_of_another_length_is_named(architecture: str, name: str, tmp_path: Path) -> None:
    config = {"d_in": D, "d_sae": F, "architecture": architecture, "apply_b_dec_to_input": True,
              "normalize_activations": "none",
              "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.7.hook_resid_post"}}  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    size = KINDS[architecture][name][0]
    for length in (size, size - 1, size + 1, 1):
        shapes = KINDS[architecture] | {name: (length,)}
        save_file({one: torch.ones(shape) for one, shape in shapes.items()}, tmp_path / "sae_weights.safetensors")
        if length == size:
            load_sae(tmp_path)
            continue
        with pytest.raises(CorruptFile, match=rf"{name} has the shape \({length},\), expected \({size},\)"):
            load_sae(tmp_path)
