"""What a SAELens folder that we write says of an SAE: its architecture, and what had been done to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemscope.errors import CorruptFile
from gemscope.features.files.saving import save_sae
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE, SAEInfo

D, F = 6, 16


def sae_of(**options: Any) -> SAE:
    sae = SAE(D, F, **{"site": "3.res", **options})
    for seed, weight in enumerate(sae.parameters()):
        weight.copy_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return sae


@pytest.mark.parametrize("gate", ["relu", "jumprelu"])
@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({}, ""),
        ({"skip": True}, "skip_transcoder"),
        ({"site_out": "3.mlp"}, "transcoder"),
        ({"d_out": 4}, "transcoder"),
        ({"d_out": 4, "skip": True}, "skip_transcoder"),
    ],
)
def test_what_goes_past_the_features_or_elsewhere_makes_a_transcoder(
    gate: Any, options: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    sae = sae_of(gate=gate, **options)
    config = json.loads((save_sae(sae, tmp_path) / "cfg.json").read_text())
    plain, before = {"relu": ("standard", ""), "jumprelu": ("jumprelu", "jumprelu_")}[gate]
    assert config["architecture"] == (before + architecture if architecture else plain)
    assert config.get("d_out") == (sae.d_out if architecture else None)
    assert load_sae(tmp_path).digest == sae.digest


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"sae_lens_training_version": "3.22.2"},
        {"model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_value_biases": True, "dtype": "f"}},
        {"model_from_pretrained_kwargs": "nothing that can be read"},
    ],
)
def test_what_had_been_done_to_the_model_is_said_as_the_sae_is_now(
    said: dict[str, Any], tmp_path: Path, *, centred: bool
) -> None:
    """Else loading it again would undo once more what is undone."""
    sae = sae_of(centred=centred, info=SAEInfo(model="gpt2", metadata=said))
    metadata = json.loads((save_sae(sae, tmp_path) / "cfg.json").read_text())["metadata"]
    if said or centred:
        before = said.get("model_from_pretrained_kwargs", {})
        kept = {"dtype": "f"} if isinstance(before, dict) and before else {}
        now = {"center_writing_weights": centred, "fold_value_biases": False}
        assert metadata["model_from_pretrained_kwargs"] == kept | now
    else:
        assert "model_from_pretrained_kwargs" not in metadata
    again = load_sae(tmp_path)
    assert (again.digest, again.centred) == (sae.digest, centred)


@pytest.mark.parametrize("name", ["b_enc", "threshold", "b_dec"])
def test_a_vector_that_is_too_short_or_too_long_is_named(name: str, tmp_path: Path) -> None:
    folder = save_sae(sae_of(), tmp_path)
    tensors = load_file(folder / "sae_weights.safetensors")
    size = len(tensors[name])
    for wrong in (size - 1, size + 1, 1):
        save_file(tensors | {name: torch.zeros(wrong)}, folder / "sae_weights.safetensors")
        with pytest.raises(CorruptFile, match=rf"{name} has the shape \({wrong},\), expected \({size},\)"):
            load_sae(folder)
