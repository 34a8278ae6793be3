"""SAEs saved in other tools' formats: what those compute with the files, written out in float64, is what the SAE computes;
what they cannot compute is refused by name. `peer/test_peer_exports.py` has the tools themselves read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gemscope as gs
from gemscope.errors import InputError

D, F, N = 16, 48, 200
LLAMA = gs.SAEInfo(model="meta-llama/Llama-3.2-1B", context_size=64)


def sae_of(**options: Any) -> gs.SAE:
    sae = gs.SAE(D, F, **{"site": "3.res", "info": LLAMA, **options})
    draw = torch.Generator().manual_seed(0)
    for name, weight in sae.named_parameters():
        weight.copy_(torch.randn(weight.shape, generator=draw) * (0.4 if weight.ndim == 1 else 0.25))
        if name == "W_dec":  # lengths that a norm folded in would show
            weight.mul_(torch.rand(F, 1, generator=draw) + 0.5)
    return sae


def rows() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) + 0.3


def assert_same(sae: gs.SAE, features: Tensor, out: Tensor, x: Tensor) -> None:
    found = sae.encode(x).to_dense().double()
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
    assert 0.5 < (features > 0).sum(-1).double().mean() < F - 1
    torch.testing.assert_close(sae(x).double(), out, rtol=1e-4, atol=1e-5)


# --- sparsify -------------------------------------------------------------------------------------------------------


def sparsified(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """What sparsify 1.3.3 computes with a folder, in float64."""
    cfg = json.loads((folder / "cfg.json").read_text())
    held = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    x = x.double()
    z = (x if cfg["transcode"] else x - held["b_dec"]) @ held["encoder.weight"].T + held["encoder.bias"]
    kept = torch.relu(z).topk(cfg["k"], dim=-1)
    features = torch.zeros_like(z).scatter(-1, kept.indices, kept.values)
    out = features @ held["W_dec"] + held["b_dec"]
    return features, out + x @ held["W_skip"].T if cfg["skip_connection"] else out


SPARSIFY: dict[str, tuple[dict[str, Any], str]] = {
    "sae": ({"gate": "topk", "k": 6}, "layers.3"),
    "relu": ({"gate": "relu"}, "layers.3"),
    "mlp": ({"gate": "topk", "k": 6, "site": "3.mlp"}, "layers.3.mlp"),
    "attention": ({"gate": "topk", "k": 6, "site": "0.att_out"}, "layers.0.self_attn.o_proj"),
    "gpt2": ({"gate": "topk", "k": 6, "site": "2.mlp", "info": gs.SAEInfo(model="openai-community/gpt2")}, "h.2.mlp"),
    "gemma": (
        {"gate": "topk", "k": 6, "site": "2.mlp_raw", "info": gs.SAEInfo(model="google/gemma-2-2b")},
        "layers.2.mlp",
    ),
    "transcoder": ({"gate": "topk", "k": 6, "site": "3.transcoder", "site_out": "3.mlp"}, "layers.3.mlp"),
    "skip": ({"gate": "topk", "k": 6, "site": "3.transcoder", "site_out": "3.mlp", "skip": True}, "layers.3.mlp"),
}


@pytest.mark.parametrize("name", SPARSIFY)
def test_sparsify_computes_the_same_with_what_is_saved_for_it_and_it_comes_back(name: str, tmp_path: Path) -> None:
    options, hookpoint = SPARSIFY[name]
    sae = sae_of(**options)
    folder = gs.save_sae(sae, tmp_path, format="sparsify")
    assert folder == tmp_path / hookpoint
    assert_same(sae, *sparsified(folder, rows()), rows())
    again = gs.load_sae(folder)
    assert (again.site, again.site_out) == (sae.site, sae.site_out)
    assert (again.info.model, again.info.context_size) == (sae.info.model, sae.info.context_size)
    assert again.k == (sae.k or F)
    if sae.is_transcoder:
        assert again.digest == sae.digest
    torch.testing.assert_close(again(rows()), sae(rows()), rtol=1e-4, atol=1e-5)
    assert set(load_file(folder / "sae.safetensors")) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | (
        {"W_skip"} if name == "skip" else set()
    )


def test_a_run_s_folder_holds_several_places_of_one_model(tmp_path: Path) -> None:
    for layer in (1, 2, 1):
        gs.save_sae(sae_of(gate="topk", k=6, site=f"{layer}.res"), tmp_path, format="sparsify")
    run = json.loads((tmp_path / "config.json").read_text())
    assert run == {"model": LLAMA.model, "ctx_len": 64, "hookpoints": ["layers.2", "layers.1"]}
    with pytest.raises(
        InputError, match=r"holds SAEs of meta-llama/Llama-3.2-1B, this one is for openai-community/gpt2: give"
    ):
        gs.save_sae(
            sae_of(gate="topk", k=6, info=gs.SAEInfo(model="openai-community/gpt2")), tmp_path, format="sparsify"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "layers.1", "layers.2"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "gate='jumprelu', which sparsify has not"),
        ({"gate": "topk", "k": 6, "centred": True}, "a mean that goes past the features, which sparsify has not"),
        ({"gate": "topk", "k": 6, "site": None}, "has no site"),
        ({"gate": "topk", "k": 6, "info": gs.SAEInfo()}, "names no model that is known here"),
        ({"gate": "topk", "k": 6, "site": "3.att"}, "no module of the model gives back 3.att"),
        ({"gate": "topk", "k": 6, "site": "3.mid"}, "no module of the model gives back 3.mid"),
        ({"gate": "topk", "k": 6, "site": "embed"}, "no module of the model gives back embed"),
        ({"gate": "topk", "k": 6, "site": "3.transcoder_nogain", "site_out": "3.mlp"}, "what goes from 3.transcoder_nogain to 3.mlp"),
        ({"gate": "topk", "k": 6, "site": "2.transcoder", "site_out": "3.mlp"}, "what goes from 2.transcoder to 3.mlp"),
        ({"gate": "topk", "k": 6, "skip": True}, "has a skip and is no transcoder"),
        ({"gate": "relu", "d_out": 4, "site_out": "3.mlp"}, "writes 4 numbers"),
    ],
)  # fmt: skip
def test_what_sparsify_has_not_is_refused_in_one_line(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as raised:
        gs.save_sae(sae_of(**options), tmp_path / "run", format="sparsify")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


# --- circuit-tracer -------------------------------------------------------------------------------------------------


def traced(file: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """What circuit-tracer 0.5 computes with a file of a set, in float64."""
    held = {name: tensor.double() for name, tensor in load_file(file).items()}
    x = x.double()
    z = x @ held["W_enc"].T + held["b_enc"]
    threshold = held.get("activation_function.threshold")
    features = torch.relu(z) if threshold is None else z * (z > threshold)
    out = features @ held["W_dec"] + held["b_dec"]
    return features, out + x @ held["W_skip"].T if "W_skip" in held else out


THROUGH = {"site": "3.transcoder", "site_out": "3.mlp"}


@pytest.mark.parametrize("gate", ["relu", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer_computes_the_same_with_what_is_saved_for_it(gate: Any, skip: bool, tmp_path: Path) -> None:
    sae = sae_of(gate=gate, skip=skip, **THROUGH)
    assert sae.threshold is None or (sae.threshold < 0).any(), "which lets nothing negative through here"
    file = gs.save_sae(sae, tmp_path, format="circuit-tracer")
    assert file == tmp_path / "layer_3.safetensors"
    assert_same(sae, *traced(file, rows()), rows())
    again = gs.load_sae(file)
    assert (again.site, again.site_out, again.info.model) == (sae.site, sae.site_out, LLAMA.model)
    torch.testing.assert_close(again(rows()), sae(rows()), rtol=0, atol=0)


def test_a_set_is_a_file_for_each_layer_and_one_description(tmp_path: Path) -> None:
    for layer in (0, 1, 0):
        sites = {"site": f"{layer}.transcoder_nogain", "site_out": f"{layer}.mlp"}
        gs.save_sae(sae_of(gate="relu", **sites), tmp_path, format="circuit-tracer")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "layer_0.safetensors",
        "layer_1.safetensors",
    ]
    assert (tmp_path / "config.yaml").read_text() == (
        'model_kind: "transcoder_set"\nmodel_name: "meta-llama/Llama-3.2-1B"\n'
        'feature_input_hook: "ln2.hook_normalized"\nfeature_output_hook: "hook_mlp_out"\nscan: "Llama-3.2-1B"\n'
    )
    for options in (THROUGH, THROUGH | {"info": gs.SAEInfo(model="openai-community/gpt2")}):
        with pytest.raises(InputError, match=r"config\.yaml describes another set of transcoders"):
            gs.save_sae(sae_of(gate="relu", **options), tmp_path, format="circuit-tracer")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gate": "relu"}, "is no transcoder of one layer"),
        ({"gate": "relu", "site": "2.transcoder", "site_out": "3.mlp"}, "is no transcoder of one layer"),
        ({"gate": "topk", "k": 6, **THROUGH}, "gate='topk', which circuit-tracer has not"),
        ({"gate": "relu", **THROUGH, "info": gs.SAEInfo()}, "names no model"),
    ],
)
def test_what_circuit_tracer_has_not_is_refused_in_one_line(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as raised:
        gs.save_sae(sae_of(**options), tmp_path / "set", format="circuit-tracer")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "set").exists()


def test_a_format_that_is_not_written_is_refused_by_name(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(
        InputError, match="no format 'npz' to save an SAE in: choose one of saelens, sparsify, circuit-tr"
    ):
        gs.save_sae(sae_of(), tmp_path, format="npz")  # type: ignore[arg-type]
