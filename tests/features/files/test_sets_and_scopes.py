"""circuit-tracer's sets, both of OpenMOSS's formats, Qwen Scope, and pickles of two layers or of all hooks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gemscope as gs
from gemscope.errors import CorruptFile, FileError, SAENotFound
from gemscope.testing import tiny_model
from peers import FORMATS, answers, assert_answers, changed, copied, put

D, F = 16, 64


def linear(seed: int = 0, d: int = D, f: int = F) -> dict[str, Tensor]:
    """Encoder [F, D] and decoder [D, F] as linear layers have them, and their biases."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "decoder.weight": (d, f), "decoder.bias": (d,)}
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def told(x: Tensor, features: Tensor, w: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    recon = (features @ w["decoder.weight"].double().T + w["decoder.bias"].double()) * scale
    return {"x": x, "features": features.float(), "recon": recon.float()}


def inputs(d: int = D) -> Tensor:
    return torch.randn(40, d, generator=torch.Generator().manual_seed(7))


# --- circuit-tracer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["set_relu", "set_jumprelu"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_layer_of_a_set_answers_as_circuit_tracer_does(name: str, layer: int, suffix: str) -> None:
    sae = gs.load_sae(FORMATS / "circuit_tracer" / name / f"layer_{layer}{suffix}")
    assert_answers(sae, answers(f"circuit_tracer/{name}_expected.safetensors", layer))
    assert (str(sae.site), str(sae.site_out)) == (f"{layer}.transcoder", f"{layer}.mlp")
    assert (sae.info.format, sae.info.model) == ("circuit-tracer", "Qwen/Qwen3-0.6B")


def test_a_set_names_its_layers_and_its_skip_is_one(tmp_path: Path) -> None:
    folder = copied("circuit_tracer/set_relu", tmp_path / "set")
    with pytest.raises(SAENotFound, match=r"there are SAEs in it: layer_0\.safetensors, layer_1\.safetensors, layer_2"):
        gs.load_sae(folder)
    held = load_file(folder / "layer_1.safetensors")
    held["W_skip"] = torch.randn(D, D, generator=torch.Generator().manual_seed(1))
    save_file(held, folder / "layer_1.safetensors")
    plain = answers("circuit_tracer/set_relu_expected.safetensors", 1)
    assert_answers(gs.load_sae(folder / "layer_1"), plain | {"recon": plain["recon"] + plain["x"] @ held["W_skip"].T})


def test_a_set_without_its_places_or_with_negative_features_is_refused(tmp_path: Path) -> None:
    folder = copied("circuit_tracer/set_jumprelu", tmp_path / "set")
    held = load_file(folder / "layer_1.safetensors")
    held["activation_function.threshold"][3] = -0.1
    save_file(held, folder / "layer_1.safetensors")
    with pytest.raises(FileError, match="thresholds below 0"):
        gs.load_sae(folder / "layer_1")
    (folder / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    with pytest.raises(FileError, match="cross_layer_transcoder"):
        gs.load_sae(folder / "layer_0")
    (folder / "config.yaml").unlink()
    with pytest.raises(FileError, match=r"does not say where it reads and writes: config\.yaml"):
        gs.load_sae(folder / "layer_0")


def test_a_set_in_gemma_writes_before_the_norm_behind_the_mlp(tmp_path: Path) -> None:
    folder = copied("circuit_tracer/set_relu", tmp_path / "set")
    text = (folder / "config.yaml").read_text().replace("Qwen/Qwen3-0.6B", "google/gemma-2-2b")
    (folder / "config.yaml").write_text(text)
    assert str(gs.load_sae(folder / "layer_1").site_out) == "1.mlp_raw"


# --- OpenMOSS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("relu_inference", ("1.res", "1.res")),
        ("jumprelu_inference", ("1.res", "1.res")),
        ("jumprelu_dataset", ("1.res", "1.res")),
        ("transcoder_dataset", ("1.transcoder_nogain", "1.mlp")),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_llamascopium_answers_in_units_of_unit_decoder_rows(
    tmp_path: Path, name: str, sites: tuple[str, str], *, older: bool
) -> None:
    folder = copied(f"llamascopium/{name}", tmp_path / name)
    held = load_file(folder / "sae_weights.safetensors")
    norms = held["W_D"].norm(dim=1)
    if older:  # what was called and turned so until 2025, and a pickle as its `.pt` is
        names = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
        turned = {
            names.get(key, key): one.T.contiguous() if key in ("W_E", "W_D") else one for key, one in held.items()
        }
        torch.save({"sae": turned}, folder / "sae_weights.pt")
        (folder / "sae_weights.safetensors").unlink()
    sae = gs.load_sae(folder)
    assert_answers(sae, answers(f"llamascopium/{name}_expected.safetensors"), norms)
    assert (str(sae.site), str(sae.site_out), sae.info.format) == (*sites, "llamascopium")


def test_what_of_llamascopium_is_no_sae_of_ours_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = copied("llamascopium/jumprelu_dataset", tmp_path / "one")
    for values, why in (
        ({"use_glu_encoder": True}, "gated linear unit"),
        ({"norm_activation": "token-wise"}, '"token-wise", a norm of each token'),
        ({"norm_activation": "batch-wise"}, '"batch-wise", a norm of each token or batch'),
        ({"act_fn": "batchtopk"}, "batchtopk has no threshold"),
        ({"sae_type": "lorsa"}, "takes the place of attention"),
        ({"sae_type": "clt"}, "writes at several layers"),
    ):
        whole = {"use_glu_encoder": False, "norm_activation": "dataset-wise", "act_fn": "jumprelu", "sae_type": "sae"}
        changed(folder / "config.json", **{**whole, **values})
        with pytest.raises(FileError, match=why):
            gs.load_sae(folder)
    for name, why in (("glu", "gated linear unit"), ("tokenwise", "token-wise")):
        with pytest.raises(FileError, match=why):
            gs.load_sae(FORMATS / "llamascopium" / name)


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    folder = copied("llamascopium/jumprelu_dataset", tmp_path / "both")
    put(folder / "cfg.json", {"architecture": "standard", "metadata": {}})
    with pytest.raises(FileError, match="may be of SAELens or llamascopium"):
        gs.load_sae(folder)


def llama_scope(folder: Path, w: dict[str, Tensor], **values: Any) -> Path:
    hook = "blocks.15.hook_resid_post"
    config = {"d_model": D, "d_sae": F, "act_fn": "jumprelu", "norm_activation": "dataset-wise", "top_k": 50,
              "jump_relu_threshold": 0.5, "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True,
              "dataset_average_activation_norm": {"in": 10.8, "out": 7.2}, "sparsity_include_decoder_norm": True,
              "apply_decoder_bias_to_pre_encoder": False}  # fmt: skip
    put(folder / "hyperparams.json", config | values)
    (folder / "checkpoints").mkdir()
    save_file(w, folder / "checkpoints" / "final.safetensors")
    return folder


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("bias_first", [True, False])
def test_llama_scope_is_what_its_first_code_makes_of_its_files(
    tmp_path: Path, *, include: bool, bias_first: bool
) -> None:
    """Scaled to the root of d_model, encoded, back in units of the model, and only then past the threshold."""
    w = linear()
    folder = llama_scope(
        tmp_path / "L15R", w, sparsity_include_decoder_norm=include, apply_decoder_bias_to_pre_encoder=bias_first
    )
    x = inputs() * 3
    s_in, s_out = math.sqrt(D) / 10.8, math.sqrt(D) / 7.2
    scaled = x.double() * s_in - (w["decoder.bias"].double() if bias_first else 0)
    z = (scaled @ w["encoder.weight"].double().T + w["encoder.bias"].double()) / s_in
    decoder = w["decoder.weight"].double() * s_in / s_out
    n = decoder.norm(dim=0) if include else torch.ones(F, dtype=torch.float64)
    features = torch.where(z * n > 0.5, z * n, 0.0)
    recon = (features / n) @ decoder.T + w["decoder.bias"].double() / s_out
    sae = gs.load_sae(folder)
    assert_answers(sae, {"x": x, "features": features.float(), "recon": recon.float()})
    assert (str(sae.site), sae.info.format, sae.info.model) == ("15.res", "Llama Scope", "meta-llama/Llama-3.1-8B")
    assert gs.load_sae(folder / "checkpoints/final.safetensors").digest == sae.digest
    assert gs.load_sae(folder / "hyperparams.json").digest == sae.digest


@pytest.mark.parametrize(
    ("values", "kind", "why"),
    [
        ({"norm_activation": "token-wise"}, FileError, "token-wise"),
        ({"use_glu_encoder": True}, FileError, "gated linear unit"),
        ({"jump_relu_threshold": None, "act_fn": "relu"}, FileError, "no jump_relu_threshold"),
        ({"dataset_average_activation_norm": {"in": 1.0}}, CorruptFile, "for out"),
        ({"d_sae": 65}, CorruptFile, "says 16 to 65, the weights have 16 to 64"),
        ({"hook_point_in": "blocks.1.attn.hook_q"}, FileError, "not known here"),
    ],
)
def test_what_of_llama_scope_does_not_fit_is_told(tmp_path: Path, values: dict[str, Any], kind: type, why: str) -> None:
    with pytest.raises(kind, match=why):
        gs.load_sae(llama_scope(tmp_path / "L15R", linear(), **values))


# --- pickles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "between", "format", "model", "site"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "_linear", "Goodfire", "meta-llama/Llama-3.1-8B-Instruct", "19.res"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "_linear", "Goodfire", "meta-llama/Llama-3.3-70B-Instruct", "50.res"),
        (
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            "",
            "DeepSeek-R1",
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
            "19.res",
        ),
    ],
)
def test_one_pickle_of_two_layers_is_told_by_its_names(
    tmp_path: Path, file: str, between: str, format: str, model: str, site: str
) -> None:
    w, x = linear(), inputs()
    torch.save({name.replace(".", f"{between}.", 1): one for name, one in w.items()}, tmp_path / file)
    features = torch.relu(x.double() @ w["encoder.weight"].double().T + w["encoder.bias"].double())
    for address in (tmp_path / file, tmp_path):
        sae = gs.load_sae(address)
        assert_answers(sae, told(x, features, w))
        assert (sae.info.format, sae.info.model, str(sae.site)) == (format, model, site)


def test_qwen_scope_takes_its_k_from_its_repositorys_name(tmp_path: Path) -> None:
    folder = tmp_path / "SAE-Res-Qwen3-8B-Base-W1K-L0_5"
    folder.mkdir()
    w, x = linear(d=8, f=1024), inputs(8)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
    torch.save({names[name]: one for name, one in w.items()}, folder / "layer3.sae.pt")
    z = (x.double() @ w["encoder.weight"].double().T + w["encoder.bias"].double()).numpy()
    features = torch.from_numpy(np.where(z >= np.sort(z, axis=1)[:, [-5]], np.maximum(z, 0), 0))
    sae = gs.load_sae(folder)
    assert_answers(sae, told(x, features, w))
    assert (sae.k, str(sae.site), sae.info.model, sae.info.format) == (5, "3.res", "Qwen/Qwen3-8B-Base", "Qwen Scope")
    folder.rename(tmp_path / "mine")
    with pytest.raises(FileError, match="does not say how many features are active"):
        gs.load_sae(tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "SAE-Res-Qwen3-8B-Base-W2K-L0_5")
    with pytest.raises(CorruptFile, match=r"1024 features, .*says 2 times 1024"):
        gs.load_sae(tmp_path / "SAE-Res-Qwen3-8B-Base-W2K-L0_5")


def test_heads_without_their_value_biases_need_the_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    d = model.width(gs.Site(1, "att"))
    chance = torch.Generator().manual_seed(0)
    w = {"W_enc": torch.randn(d, 20, generator=chance), "W_dec": torch.randn(20, d, generator=chance),
         "b_enc": torch.randn(20, generator=chance), "b_dec": torch.randn(d, generator=chance)}  # fmt: skip
    name = "gpt2-small_L1_Hcat_z_lr1.20e-03_v9"
    torch.save(w, tmp_path / f"{name}.pt")
    put(tmp_path / f"{name}_cfg.json", {"act_name": "blocks.1.attn.hook_z", "act_size": d, "dict_size": 20,
                                        "model_name": "gpt2-small", "concat_heads": True, "seq_len": 128})  # fmt: skip
    with pytest.raises(FileError, match=r"value biases .*model=model"):
        gs.load_sae(tmp_path / f"{name}.pt")
    sae = gs.load_sae(tmp_path, model=model)
    block = model.hf.transformer.h[1]
    # TransformerLens moves b_V + ln1.bias @ W_V behind the output projection: heads are read without it
    qkv = block.attn.c_attn
    c = qkv.bias[-d:].detach() + block.ln_1.bias.detach() @ qkv.weight[:, -d:].detach()
    x = torch.randn(40, d, generator=chance)
    z = x - c
    features = torch.relu((z - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    assert_answers(sae, {"x": x, "features": features, "recon": features @ w["W_dec"] + w["b_dec"] + c})
    assert (str(sae.site), sae.info.format) == ("1.att", "hook_z")


def test_the_end_to_end_saes_of_a_run_are_told_apart_by_site(tmp_path: Path) -> None:
    w = {hook: linear(seed) for seed, hook in enumerate(("blocks-2-hook_resid_pre", "blocks-6-hook_resid_pre"))}
    names = {"encoder.weight": "encoder.0.weight", "encoder.bias": "encoder.0.bias"}
    held = {f"saes.{hook}.{names.get(name, name)}": one for hook, ws in w.items() for name, one in ws.items()}
    torch.save(held, tmp_path / "samples_400000.pt")
    (tmp_path / "final_config.yaml").write_text("tlens_model_name: gpt2-small\nseed: 0\n")
    with pytest.raises(FileError, match=r"not of one SAE alone.*blocks\.2\.hook_resid_pre, blocks\.6\.hook_resid_pre"):
        gs.load_sae(tmp_path)
    with pytest.raises(FileError, match=r"has none of 9\.res"):
        gs.load_sae(tmp_path, site="9.res")
    sae = gs.load_sae(tmp_path, site="5.res")
    ours, x = w["blocks-6-hook_resid_pre"], inputs()
    centred = x.double() - x.double().mean(1, keepdim=True)  # as TransformerLens has GPT-2's stream
    features = torch.relu(centred @ ours["encoder.weight"].double().T + ours["encoder.bias"].double())
    decoder = ours["decoder.weight"].double() / ours["decoder.weight"].double().norm(dim=0)
    recon = features @ decoder.T + ours["decoder.bias"].double() + x.double().mean(1, keepdim=True)
    assert_answers(sae, {"x": x, "features": features.float(), "recon": recon.float()})
    assert (sae.centred, sae.info.format, sae.info.model) == (True, "e2e_sae", "openai-community/gpt2")


# --- what cannot be one SAE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("circuit_tracer/clt", "cross-layer transcoder"),
        ("circuit_tracer/gemma_scope_2_clt", "cross-layer transcoder"),
        ("saelens/AbsTopKSAE", "may be negative"),
        ("saelens/MatchingPursuitSAE", "one feature after another"),
    ],
)
def test_what_cannot_be_one_sae_is_refused_by_its_own_reason(name: str, why: str) -> None:
    with pytest.raises(FileError, match=why) as caught:
        gs.load_sae(FORMATS / name)
    assert not isinstance(caught.value, CorruptFile)


def test_temporal_saes_and_crosscoders_of_two_models_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a" / "conf.yaml", {})
    save_file({"D": torch.zeros(4, 4), "b": torch.zeros(4)}, tmp_path / "a" / "latest_ckpt.safetensors")
    put(tmp_path / "b" / "cfg.json", {})
    torch.save({"W_enc": torch.zeros(2, 4, 8)}, tmp_path / "b" / "cc_weights.pt")
    for folder, why in (("a", "temporal"), ("b", "two models")):
        with pytest.raises(FileError, match=why):
            gs.load_sae(tmp_path / folder)


def test_a_file_of_no_format_says_what_it_holds(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(4, 4)}, tmp_path / "mine.safetensors")
    with pytest.raises(FileError, match=r"of no format that is read here.*it holds weight"):
        gs.load_sae(tmp_path / "mine.safetensors")
