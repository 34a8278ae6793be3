"""Runs of dictionary_learning: each class answers as it does there."""

from pathlib import Path

import pytest
import torch

import gemscope as gs
from gemscope.errors import CorruptFile, FileError
from peers import FORMATS, answers, assert_answers, changed, copied, put

RUN = "resid_post_layer_3/trainer_0"
CLASSES = ["standard", "gated", "topk", "batch_topk", "batch_topk_young", "matryoshka", "jumprelu"]


def run(tmp_path: Path, name: str) -> Path:
    return copied(f"dictionary_learning/{name}", tmp_path / name) / RUN


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_answers_as_it_does_there(name: str) -> None:
    sae = gs.load_sae(FORMATS / "dictionary_learning" / name / RUN)
    assert_answers(sae, answers(f"dictionary_learning/{name}/expected.safetensors"))
    assert (str(sae.site), sae.info.model) == ("3.res", "EleutherAI/pythia-70m-deduped")
    assert (sae.info.format, sae.info.context_size) == ("dictionary_learning", 128)
    assert ("threshold" in sae.info.metadata) == (name == "batch_topk_young")


@pytest.mark.parametrize("name", CLASSES)
def test_without_a_configuration_its_names_tell_the_class_or_it_is_refused(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path, name)
    (folder / "config.json").unlink()
    if "topk" in name:
        with pytest.raises(FileError, match="may be an AutoEncoderTopK or a BatchTopKSAE"):
            gs.load_sae(folder)
        return
    sae = gs.load_sae(folder)
    assert str(sae.site) == "3.res"  # as the folder is called
    assert_answers(sae, answers(f"dictionary_learning/{name}/expected.safetensors"))


@pytest.mark.parametrize("name", CLASSES)
def test_of_an_interrupted_run_biases_are_scaled_at_last(tmp_path: Path, name: str) -> None:
    """As its scale_biases does: activations were divided by the factor while it learned."""
    folder = run(tmp_path, name)
    held = torch.load(folder / "ae.pt", weights_only=True)
    told = answers(f"dictionary_learning/{name}/expected.safetensors")
    torch.save(
        {"step": 5, "ae": held, "optimizer": {"state": {}}, "config": {"a": 1}, "norm_factor": 4.0}, folder / "ae.pt"
    )
    scaled = {key: one if key == "matryoshka" else one * 4 for key, one in told.items()}
    assert_answers(gs.load_sae(folder), scaled)


def test_the_older_class_without_an_input_bias(tmp_path: Path) -> None:
    folder = run(tmp_path, "standard")
    held = torch.load(folder / "ae.pt", weights_only=True)
    held["decoder.bias"] = held.pop("bias")
    torch.save(held, folder / "ae.pt")
    changed(folder / "config.json", "trainer", dict_class="AutoEncoderNew")
    x = answers("dictionary_learning/standard/expected.safetensors")["x"]
    features = torch.relu(x @ held["encoder.weight"].T + held["encoder.bias"])
    recon = features @ held["decoder.weight"].T + held["decoder.bias"]
    assert_answers(gs.load_sae(folder), {"x": x, "features": features, "recon": recon})


@pytest.mark.parametrize(
    ("submodule", "model", "site"),
    [
        ("resid_post_layer_12", "google/gemma-2-2b", "12.res"),
        ("mlp_out_layer_4", "EleutherAI/pythia-70m", "4.mlp"),
        ("mlp_out_layer4", "google/gemma-2-2b", "4.mlp_raw"),
        ("attn_out_layer_4", "meta-llama/Llama-3.1-8B", "4.att_out"),
        (None, "google/gemma-2-2b", "3.res"),
    ],
)
def test_the_place_is_what_the_run_calls_it(tmp_path: Path, submodule: str | None, model: str, site: str) -> None:
    folder = run(tmp_path, "topk")
    changed(folder / "config.json", "trainer", submodule_name=submodule, lm_name=model)
    assert str(gs.load_sae(folder).site) == site


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path, "topk")
    for trainer, buffer, why in (
        ({"dict_class": "CrossCoder"}, {}, '"CrossCoder", which is not read'),
        ({}, {"io": "in"}, "what goes in"),
        ({}, {"io": "in_and_out"}, "transcoder"),
        ({"submodule_name": "attn_out_layer_3", "lm_name": "google/gemma-2-2b"}, {"io": "out"}, "not known here"),
        ({"submodule_name": "mlp_out_layer_3", "lm_name": None}, {"io": "out"}, "model=model"),
    ):
        changed(folder / "config.json", "trainer", **{"dict_class": "AutoEncoderTopK", **trainer})
        changed(folder / "config.json", "buffer", **buffer)
        with pytest.raises(FileError, match=why):
            gs.load_sae(folder)
    put(folder / "config.json", {"trainer": {"dict_class": "GatedAutoEncoder"}})
    with pytest.raises(CorruptFile, match="has no gate_bias and no mag_bias and no r_mag and no decoder_bias"):
        gs.load_sae(folder)
    put(folder / "config.json", {"trainer": {"dict_class": "AutoEncoderTopK", "dict_size": 65}})
    with pytest.raises(CorruptFile, match="says None to 65, the weights have 16 to 64"):
        gs.load_sae(folder)
