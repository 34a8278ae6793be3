"""SAELens's folders as they are written, and read back."""

import inspect
import json
import math
import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gemscope import load_sae
from gemscope.activations.site import KINDS, Site
from gemscope.errors import InputError, StorageFull
from gemscope.features.files.saelens_described import Described
from gemscope.features.files.saving import save_sae
from gemscope.features.sae import SAEInfo
from saelens_folders import D, F, quick, random_sae

GATES = st.sampled_from(["jumprelu", "relu", "topk"])


def test_an_sae_has_what_is_asked_of_it_where_python_looks_for_that_from_3_12_on():
    sae = random_sae(skip=True)
    for name in (*Described.__annotations__, *(name for name in vars(Described) if not name.startswith("_"))):
        inspect.getattr_static(sae, name)
    assert isinstance(sae, Described)


@quick
@given(
    gate=GATES, skip=st.booleans(), transcoder=st.booleans(), kind=st.sampled_from([*KINDS]), seed=st.integers(0, 99)
)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, *, gate, skip, transcoder, kind, seed):
    if gate == "topk" and (skip or transcoder):
        return
    site = Site(None if kind == "embed" else 3, kind)
    info = SAEInfo(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        declared_l0=50.25,
        neuronpedia_id="a/3-b",
        prepend_bos=False,
        context_size=256,
        metadata={"dataset_path": "a corpus"},
    )
    if kind == "mlp_raw":  # of Gemma 2 and 3 alone
        info = SAEInfo(model="google/gemma-2-2b")
    options = {"site_out": "3.mlp"} if transcoder and kind != "mlp" else {}
    sae = random_sae(
        seed,
        d_out=4 if transcoder else None,
        gate=gate,
        k=2 if gate == "topk" else None,
        skip=skip,
        site=site,
        info=info,
        **options,
    )
    folder = save_sae(sae, tmp_path_factory.mktemp("sae") / "new")
    again = load_sae(folder)
    assert again.digest == sae.digest
    assert (again.gate, again.k, again.site, again.site_out) == (sae.gate, sae.k, sae.site, sae.site_out)
    kept = ("model", "declared_l0", "neuronpedia_id", "prepend_bos", "context_size")
    assert all(getattr(again.info, name) == getattr(info, name) for name in kept)
    assert again.info.metadata.items() >= info.metadata.items()
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({"gate": "relu"}, "standard"),
        ({"gate": "topk", "k": 2}, "topk"),
        ({}, "jumprelu"),
        ({"gate": "relu", "site_out": "3.mlp"}, "transcoder"),
        ({"gate": "relu", "site_out": "3.mlp", "skip": True}, "skip_transcoder"),
        ({"site_out": "3.mlp"}, "jumprelu_transcoder"),
        ({"site_out": "3.mlp", "skip": True}, "jumprelu_skip_transcoder"),
    ],
)
def test_the_configuration_is_version_6(tmp_path, options, architecture):
    site = "3.transcoder" if "site_out" in options else "3.res"
    sae = random_sae(site=site, info=SAEInfo(model="google/gemma-3-1b-pt"), **options)
    config = json.loads((save_sae(sae, tmp_path) / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config.pop("architecture") == architecture
    assert metadata["sae_lens_version"].startswith("6.")
    if "site_out" in options:
        assert config.pop("d_out") == D
        assert metadata["hook_name"] == "blocks.3.mlp.hook_in"
        assert metadata["hook_name_out"] == "blocks.3.hook_mlp_out"
        assert metadata["hf_hook_name"] == "model.layers.3.pre_feedforward_layernorm.output"
        assert metadata["hf_hook_name_out"] == "model.layers.3.post_feedforward_layernorm.output"
    else:
        assert metadata["hook_name"] == "blocks.3.hook_resid_post"
        assert metadata["hf_hook_name"] == "model.layers.3.output"
    if architecture == "topk":
        assert (config.pop("k"), config.pop("rescale_acts_by_decoder_norm")) == (2, False)
    assert config == {
        "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none",
    }  # fmt: skip


def test_half_precision_leaves_biases_and_thresholds_whole(tmp_path):
    sae = random_sae(site="3.att", info=SAEInfo(model="google/gemma-2-2b"))
    folder = save_sae(sae, tmp_path, dtype=torch.float16)
    stored = load_file(folder / "sae_weights.safetensors")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float16} == {"W_enc", "W_dec"}
    assert torch.equal(stored["threshold"], sae.threshold)
    assert torch.equal(stored["W_enc"], sae.W_enc.half())
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["dtype"], config["reshape_activations"]) == ("float32", "hook_z")
    assert torch.equal(load_sae(folder).W_dec, sae.W_dec.half().float())


def test_gemmas_embedding_is_written_for_behind_its_scaling(tmp_path):
    sae = random_sae(site="embed", info=SAEInfo(model="google/gemma-2-2b"))
    stored = load_file(save_sae(sae, tmp_path) / "sae_weights.safetensors")
    torch.testing.assert_close(stored["W_enc"] * math.sqrt(D), sae.W_enc.data)
    again = load_sae(tmp_path)
    for name, weight in sae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)


def test_saving_over_an_sae_keeps_what_else_is_in_the_folder(tmp_path):
    save_sae(random_sae(1, site="3.res"), tmp_path)
    (tmp_path / "README.md").write_text("a card")
    sae = random_sae(2, site="4.res", gate="relu")
    save_sae(sae, tmp_path)
    assert load_sae(tmp_path).digest == sae.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "cfg.json", "sae_weights.safetensors"]


def test_a_full_disk_leaves_the_old_sae_and_no_new_folder(tmp_path):
    old = random_sae(1, site="3.res")
    save_sae(old, tmp_path / "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        for name in ("old", "new"):
            with pytest.raises(StorageFull):
                save_sae(random_sae(2, site="3.res"), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert load_sae(tmp_path / "old").digest == old.digest


def test_what_saelens_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="no site"):
        save_sae(random_sae(), tmp_path)
    with pytest.raises(InputError, match="topk"):
        save_sae(random_sae(gate="topk", k=2, site="3.res", site_out="3.mlp"), tmp_path)
    with pytest.raises(InputError, match="float32"):
        save_sae(random_sae(site="3.res"), tmp_path, dtype=torch.int8)
    assert not list(tmp_path.iterdir())
