"""Hookpoints that sparsify wrote: its own features and outputs come out, at the place that the folder's name means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gemscope as gs
from gemscope.activations.families import FAMILIES
from gemscope.errors import CorruptFile, FileError, SAENotFound
from gemscope.features.files.hook_names import site_of_hookpoint
from peers import FORMATS, answers, assert_answers, changed, copied, put


def run(tmp_path: Path, name: str, model: str = "EleutherAI/pythia-70m") -> Path:
    folder = copied(f"sparsify/{name}", tmp_path / "run")
    put(folder / "config.json", {"model": model, "dataset": "text", "ctx_len": 128, "sae": {}, "hookpoints": None})
    return folder


@pytest.mark.parametrize(
    ("name", "hookpoint", "sites"),
    [
        ("sae", "layers.1", ("1.res", "1.res")),
        ("sae", "layers.2.mlp", ("2.mlp", "2.mlp")),
        ("transcoder", "layers.1.mlp", ("1.transcoder", "1.mlp")),
        ("transcoder_skip", "layers.1.mlp", ("1.transcoder", "1.mlp")),
    ],
)
def test_saes_and_transcoders_answer_as_sparsify_does(
    tmp_path: Path, name: str, hookpoint: str, sites: tuple[str, str]
) -> None:
    sae = gs.load_sae(run(tmp_path, name) / hookpoint)
    assert_answers(sae, answers(f"sparsify/{name}/expected_{hookpoint}.safetensors"))
    assert (str(sae.site), str(sae.site_out)) == sites
    assert (sae.info.format, sae.info.model, sae.info.context_size) == ("sparsify", "EleutherAI/pythia-70m", 128)
    assert (sae.gate, sae.k) == ("topk", 5)


def test_in_half_precision_it_is_what_its_weights_say_in_double() -> None:
    """sparsify itself rounds every step there, and is off by more than 1."""
    folder = FORMATS / "sparsify/bf16/layers.1"
    held = {name: one.double().numpy() for name, one in load_file(folder / "sae.safetensors").items()}
    x = answers("sparsify/bf16/expected_layers.1.safetensors")["x"]
    z = (x.double().numpy() - held["b_dec"]) @ held["encoder.weight"].T + held["encoder.bias"]
    kth = np.sort(z, axis=1)[:, [-5]]
    features = np.where(z >= kth, np.maximum(z, 0), 0)
    recon = features @ held["W_dec"] + held["b_dec"]
    sae = gs.load_sae(folder)
    told = {"x": x, "features": torch.from_numpy(features).float(), "recon": torch.from_numpy(recon).float()}
    assert_answers(sae, told)


@pytest.mark.parametrize("place", ["layers.1", "layers.1/seed0", "best/embed/layers.1"])
def test_the_hookpoint_is_a_folder_on_the_way(tmp_path: Path, place: str) -> None:
    folder = copied("sparsify/sae/layers.1", tmp_path / place)
    assert str(gs.load_sae(folder).site) == "1.res"


def test_without_the_model_only_what_is_the_same_in_all_is_taken(tmp_path: Path) -> None:
    for name, hookpoint in (("sae", "layers.2.mlp"), ("transcoder", "layers.1.mlp")):
        with pytest.raises(FileError, match=r"another place in some models than in others.*model=model"):
            gs.load_sae(FORMATS / "sparsify" / name / hookpoint)
    assert str(gs.load_sae(FORMATS / "sparsify/sae/layers.2.mlp", site="2.mlp_raw").site) == "2.mlp_raw"
    folder = copied("sparsify/sae/layers.1", tmp_path / "mine")
    with pytest.raises(FileError, match=r"does not say where in the model it reads.*site="):
        gs.load_sae(folder)
    assert str(gs.load_sae(folder, site="1.res").site) == "1.res"
    folder = copied("sparsify/transcoder/layers.1.mlp", tmp_path / "ours")
    with pytest.raises(FileError, match="give the folder that name"):
        gs.load_sae(folder, site="1.transcoder")


@pytest.mark.parametrize(
    ("model", "path", "end", "site"),
    [
        ("llama", "layers.5", "output", "5.res"),
        ("llama", "layers.5", "input", "4.res"),
        ("llama", "layers.5.mlp", "output", "5.mlp"),
        ("llama", "layers.5.mlp", "input", "5.transcoder"),
        ("llama", "layers.5.self_attn", "output", "5.att_out"),
        ("llama", "layers.5.self_attn.o_proj", "output", "5.att_out"),
        ("llama", "model.layers.5", "output", "5.res"),
        ("gemma2", "layers.5.mlp", "output", "5.mlp_raw"),
        ("gemma3", "language_model.layers.5.mlp", "input", "5.transcoder"),
        ("gpt2", "h.3.mlp", "input", "3.transcoder"),
        ("gpt2", "h.3.attn", "output", "3.att_out"),
        ("gpt_neox", "layers.3.attention", "output", "3.att_out"),
        ("olmo2", "layers.3.mlp", "input", "3.mid"),
        ("opt", "decoder.layers.3", "output", "3.res"),
    ],
)
def test_a_hookpoint_is_a_module_from_the_model_without_its_head(model: str, path: str, end: str, site: str) -> None:
    assert str(site_of_hookpoint(path, end, FAMILIES[model], "it")) == site


@pytest.mark.parametrize(
    ("model", "path", "end"),
    [
        ("llama", "layers.0", "input"),
        ("llama", "layers.5.self_attn", "input"),
        ("llama", "layers.5.mlp.act_fn", "output"),
        ("gemma2", "layers.5.self_attn", "output"),
        ("bloom", "h.5.mlp", "output"),
        ("opt", "decoder.layers.3.fc2", "input"),
        ("granite", "layers.5.self_attn", "output"),
        ("llama", "embed_tokens", "output"),
        ("llama", "vision.9", "output"),
    ],
)
def test_a_module_that_is_no_site_is_refused(model: str, path: str, end: str) -> None:
    with pytest.raises(FileError, match="a place that is not known here"):
        site_of_hookpoint(path, end, FAMILIES[model], "it")


def test_what_is_no_sae_of_ours_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="groupmax"):
        gs.load_sae(FORMATS / "sparsify/sae_groupmax/layers.1")
    for number, (values, why) in enumerate(
        (
            ({"n_targets": 4}, "cross-layer transcoder"),
            ({"coalesce_topk": "concat"}, "cross-layer transcoder"),
            ({"normalize_io": True}, "normalize_io"),
            ({"activation": "batchtopk"}, "'batchtopk'"),
            ({"signed": True}, "signed topk"),
        )
    ):
        folder = copied("sparsify/sae/layers.1", tmp_path / str(number) / "layers.1")
        changed(folder / "cfg.json", **values)
        with pytest.raises(FileError, match=why):
            gs.load_sae(folder)


def test_a_configuration_that_says_otherwise_than_the_weights_is_told(tmp_path: Path) -> None:
    for number, (values, why) in enumerate(
        (
            ({"skip_connection": True}, "skip_connection=true, the weights have none"),
            ({"num_latents": 65}, "16 to 65, the weights have 16 to 64"),
            ({"d_in": 17}, "17 to any, the weights have 16 to 64"),
            ({"k": 65}, "k=65 of 64"),
            ({"k": 0}, 'field "k" is 0, expected a whole number from 1'),
        )
    ):
        folder = copied("sparsify/sae/layers.1", tmp_path / str(number) / "layers.1")
        changed(folder / "cfg.json", **values)
        with pytest.raises(CorruptFile, match=why):
            gs.load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CorruptFile, match=r"no cfg\.json beside sae\.safetensors"):
        gs.load_sae(folder)


def test_an_older_decoder_is_a_linear_layers(tmp_path: Path) -> None:
    folder = copied("sparsify/sae/layers.1", tmp_path / "layers.1")
    held = load_file(folder / "sae.safetensors")
    held["decoder.weight"] = held.pop("W_dec").T.contiguous()
    save_file(held, folder / "sae.safetensors")
    assert_answers(gs.load_sae(folder), answers("sparsify/sae/expected_layers.1.safetensors"))


def test_a_run_names_its_hookpoints(tmp_path: Path) -> None:
    with pytest.raises(SAENotFound, match=r"there are SAEs in it: layers\.1, layers\.2\.mlp$"):
        gs.load_sae(run(tmp_path, "sae"))
