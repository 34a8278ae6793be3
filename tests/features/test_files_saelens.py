"""SAELens folders: what SAELens would compute is what our SAE computes, or the folder is refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gemscope.errors import CorruptFile, FileError
from saelens_folders import D, F, assert_computes, compute, folder_of, inputs, load, quick, threshold, vector, weights

# --- reading --------------------------------------------------------------------------------------------------------


def test_a_standard_sae(tmp_path):
    w, x = weights(), inputs()
    acts = torch.relu(x @ w["W_enc"] + w["b_enc"])
    sae = load(
        folder_of(tmp_path, w, l0=33.5, prepend_bos=True, context_size=128, neuronpedia_id="a/b", dataset_path="c")
    )
    assert_computes(sae, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (sae.gate, str(sae.site), sae.is_transcoder) == ("relu", "7.res", False)
    info = sae.info
    assert (info.model, info.declared_l0, info.prepend_bos, info.context_size) == ("google/gemma-2-2b", 33.5, True, 128)
    assert (info.neuronpedia_id, info.metadata) == ("a/b", {"dataset_path": "c"})


def test_a_jumprelu_sae_and_its_older_log_threshold(tmp_path):
    w, x = weights(threshold=threshold), inputs()
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre) * (pre > w["threshold"])
    out = acts @ w["W_dec"] + w["b_dec"]
    jumprelu = {"architecture": "jumprelu"}
    assert_computes(load(folder_of(tmp_path / "new", w, jumprelu)), acts, out)
    w["log_threshold"] = w.pop("threshold").log()
    assert_computes(load(folder_of(tmp_path / "old", w, jumprelu)), acts, out)


@quick
@given(seed=st.integers(0, 2**32))
def test_a_decoder_bias_taken_from_the_input_is_folded(tmp_path_factory, seed):
    w, x = weights(seed), inputs()
    acts = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    folder = folder_of(tmp_path_factory.mktemp("sae"), w, {"apply_b_dec_to_input": True})
    assert_computes(load(folder), acts, acts @ w["W_dec"] + w["b_dec"])


@quick
@given(seed=st.integers(0, 2**32), applied=st.booleans())
def test_a_gated_sae_becomes_thresholds(tmp_path_factory, seed, applied):
    w, x = weights(seed, b_gate=vector, b_mag=vector, r_mag=vector), inputs()
    del w["b_enc"]
    inside = x - w["b_dec"] if applied else x
    active = inside @ w["W_enc"] + w["b_gate"] > 0
    acts = active * torch.relu(inside @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    folder = folder_of(tmp_path_factory.mktemp("sae"), w, {"architecture": "gated", "apply_b_dec_to_input": applied})
    assert_computes(load(folder), acts, acts @ w["W_dec"] + w["b_dec"])


@quick
@given(seed=st.integers(0, 2**32), rescale=st.booleans())
def test_topk_with_and_without_rescaling_by_decoder_norms(tmp_path_factory, seed, rescale):
    w, x = weights(seed), inputs()
    norm = w["W_dec"].norm(dim=1) if rescale else torch.ones(F, dtype=torch.float64)
    pre = (x @ w["W_enc"] + w["b_enc"]) * norm
    best = pre.topk(3)
    acts = torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    config = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": rescale}
    sae = load(folder_of(tmp_path_factory.mktemp("sae"), w, config))
    assert_computes(sae, acts, (acts / norm) @ w["W_dec"] + w["b_dec"])
    assert (sae.gate, sae.k) == ("topk", 3)


def test_rescaling_survives_a_decoder_row_of_zeros(tmp_path):
    w = weights()
    w["W_dec"][4] = 0
    config = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    assert load(folder_of(tmp_path, w, config)).W_dec.isfinite().all()


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batch_topk_checkpoint_has_one_threshold_for_all(tmp_path, architecture):
    w, x = weights(topk_threshold=lambda _: torch.tensor(0.7, dtype=torch.float64)), inputs()
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = pre * (pre > 0.7)
    assert_computes(
        load(folder_of(tmp_path, w, {"architecture": architecture, "k": 5})), acts, acts @ w["W_dec"] + w["b_dec"]
    )


@pytest.mark.parametrize("where", ["scaler", "cfg", "metadata"])
def test_a_normalisation_with_its_factor_is_folded(tmp_path, where):
    w, x, s = weights(threshold=threshold), inputs(), 0.37
    inside = x * s - w["b_dec"]
    pre = inside @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre) * (pre > w["threshold"])
    out = (acts @ w["W_dec"] + w["b_dec"]) / s
    config = {
        "architecture": "jumprelu",
        "normalize_activations": "expected_average_only_in",
        "apply_b_dec_to_input": True,
    }
    if where == "cfg":
        config["norm_scaling_factor"] = s
    folder = folder_of(tmp_path, w, config, **({"norm_scaling_factor": s} if where == "metadata" else {}))
    if where == "scaler":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
    assert_computes(load(folder), acts, out)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk"])
def test_decoder_norms_and_a_norm_factor_are_folded_together(tmp_path, architecture):
    """Thresholds were learned beside s·x and the norms of W_dec as stored; features count what is written on plain x."""
    one = {"topk_threshold": lambda _: torch.tensor(0.7, dtype=torch.float64)}
    w, x, s = weights(**({"threshold": threshold} if architecture == "jumprelu" else one)), inputs(), 0.37
    norm = w["W_dec"].norm(dim=1)
    pre = (s * x @ w["W_enc"] + w["b_enc"]) * norm
    acts = torch.relu(pre) * (pre > w.get("threshold", 0.7))
    config = {"architecture": architecture, "k": 5, "rescale_acts_by_decoder_norm": True, "norm_scaling_factor": s,
              "normalize_activations": "expected_average_only_in"}  # fmt: skip
    sae = load(folder_of(tmp_path, w, config))
    assert_computes(sae, acts / s, ((acts / norm) @ w["W_dec"] + w["b_dec"]) / s)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "norm_scaling_factor"),
        (
            {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.0},
            "expected a number above 0",
        ),
        ({"normalize_activations": "batch_norm"}, "batch_norm"),
        ({"reshape_activations": "spiral"}, "spiral"),
        ({"architecture": "temporal"}, '"temporal"'),
        ({"architecture": "matching_pursuit"}, '"matching_pursuit"'),
        ({"architecture": "crosscoder"}, "load it with load_crosscoder"),
        ({"architecture": "abstopk"}, '"abstopk"'),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"d_sae": F + 1}, "says d_sae=17, the weights have 16"),
        ({"architecture": "topk"}, "k=null, expected a whole number"),
        ({"architecture": "topk", "k": 5.5}, r"k=5\.5, expected a whole number"),
        ({"architecture": {}}, '"architecture" is an empty object, expected text'),
        ({"architecture": None}, '"architecture" is null, expected text'),
        ({"apply_b_dec_to_input": "false"}, 'is "false", expected true or false'),
        ({"d_sae": "16"}, 'is "16", expected a whole number'),
        ({"metadata": {"sae_lens_version": "6.54.12", "hook_name": []}}, r'"metadata\.hook_name" is an empty list'),
        ({"sae_lens_version": "4.1.0", "architecture": "topk", "activation_fn_kwargs": True}, "k=null"),
        ({"normalize_activations": "covariance_whitening"}, r"no activation_whitening\.safetensors"),
        ({"architecture": "topk", "k": F + 1}, "expected 1 to 16"),
    ],
)
def test_what_cannot_be_done_rightly_is_refused_in_one_line(tmp_path, config, message):
    with pytest.raises(FileError, match=message) as caught:
        load(folder_of(tmp_path, weights(), config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": "blocks.7.mlp.hook_post"}, r"blocks\.7\.mlp\.hook_post"),
        ({"hook_name": "blocks.0.hook_resid_pre", "model_name": "gpt2-small"}, "hook_resid_pre"),  # positions are added
        ({"hook_name": "blocks.3.hook_mlp_in"}, "hook_mlp_in"),  # TransformerLens and its users mean different tensors
        ({"hf_hook_name": "model.layers.7.mystery"}, "mystery"),
        ({"hook_name": None}, "does not say where"),
        ({"hook_head_index": 3}, "single attention head"),
    ],
)
def test_an_unknown_place_is_refused_in_one_line(tmp_path, metadata, message):
    with pytest.raises(FileError, match=message) as caught:
        load(folder_of(tmp_path, weights(), **metadata))
    assert "\n" not in str(caught.value)


def test_an_unknown_place_can_be_said(tmp_path):
    sae = load(folder_of(tmp_path, weights(), hook_name="blocks.3.hook_mlp_in"), site="3.mid")
    assert (str(sae.site), sae.is_transcoder) == ("3.mid", False)


def test_the_module_is_believed_before_the_hook(tmp_path):
    metadata = {
        "hook_name": "blocks.10.hook_mlp_in",
        "hook_name_out": "blocks.10.hook_mlp_out",
        "hf_hook_name": "model.layers.10.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.10.post_feedforward_layernorm.output",
    }
    w = weights(d_out=4, threshold=threshold)
    sae = load(folder_of(tmp_path, w, {"architecture": "jumprelu_transcoder", "d_out": 4}, **metadata))
    assert (str(sae.site), str(sae.site_out), sae.d_out) == ("10.transcoder", "10.mlp", 4)


def test_folders_older_than_version_6(tmp_path):
    w, x = weights(), inputs()
    old = {
        "architecture": "standard", "d_in": D, "d_sae": F, "dtype": "torch.float32", "model_name": "gpt2-small", "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "hook_point_head_index": None,
        "activation_fn_str": "relu", "normalize_activations": False, "context_size": 128, "dataset_path": "openwebtext",
        "sae_lens_version": "3.14.0",
    }  # fmt: skip
    folder = folder_of(tmp_path, w)
    (folder / "cfg.json").write_text(json.dumps(old))
    sae = load(folder)
    acts = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])  # its default
    assert_computes(sae, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(sae.site), sae.info.model, sae.info.prepend_bos) == ("7.res", "openai-community/gpt2", True)
    said = {"center_writing_weights": False}
    assert sae.info.metadata == {"dataset_path": "openwebtext", "model_from_pretrained_kwargs": said}
    topk = old | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(topk))
    assert (load(folder).gate, load(folder).k) == ("topk", 2)
    as_in_5 = topk | {"architecture": "topk", "sae_lens_version": None, "sae_lens_training_version": "5.11.0"}
    (folder / "cfg.json").write_text(json.dumps(as_in_5))
    assert (load(folder).gate, load(folder).k) == ("topk", 2)
    for change, message in (
        ({"normalize_activations": True}, "expected_average_only_in"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu"),
    ):
        (folder / "cfg.json").write_text(json.dumps(old | change))
        with pytest.raises(FileError, match=message):
            load(folder)


@pytest.mark.parametrize("model", ["google/gemma-2b", "gemma-2-2b", "google/gemma-3-1b-it"])
def test_gemmas_embedding_is_read_before_its_scaling(tmp_path, model):
    w, x = weights(), inputs()
    acts = torch.relu((x * math.sqrt(D)) @ w["W_enc"] + w["b_enc"])
    sae = load(folder_of(tmp_path, w, hook_name="hook_embed", model_name=model))
    assert_computes(sae, acts, (acts @ w["W_dec"] + w["b_dec"]) / math.sqrt(D))
    assert str(sae.site) == "embed"
    w = weights()
    assert torch.equal(load(folder_of(tmp_path, w, hook_name="hook_embed", model_name="gpt2-small")).W_enc, w["W_enc"])


@quick
@given(seed=st.integers(0, 2**32), applied=st.booleans(), kind=st.sampled_from(["jumprelu", "topk", "gated"]))
def test_whitening_is_folded(tmp_path_factory, seed, applied, kind):
    """As SAELens whitens: z = (x − mean) @ matrix inside, x̂ = ẑ @ inverse + mean."""
    gated = {"b_gate": vector, "b_mag": vector, "r_mag": vector}
    w, x = weights(seed, **{"jumprelu": {"threshold": threshold}, "gated": gated, "topk": {}}[kind]), inputs()
    random = torch.Generator().manual_seed(seed)
    mean, matrix = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((D,), (D, D)))
    matrix += 4 * torch.eye(D, dtype=torch.float64)
    inside = (x - mean) @ matrix - (w["b_dec"] if applied else 0)
    config = {"architecture": kind, "apply_b_dec_to_input": applied, "normalize_activations": "covariance_whitening"}
    norm = torch.ones(F, dtype=torch.float64)
    if kind == "topk":
        config |= {"k": 3, "rescale_acts_by_decoder_norm": True}
        norm = w["W_dec"].norm(dim=1)
        pre = (inside @ w["W_enc"] + w["b_enc"]) * norm
        best = pre.topk(3)
        acts = torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    elif kind == "gated":
        del w["b_enc"]
        acts = torch.relu(inside @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
        acts = acts * (inside @ w["W_enc"] + w["b_gate"] > 0)
    else:
        pre = inside @ w["W_enc"] + w["b_enc"]
        acts = torch.relu(pre) * (pre > w["threshold"])
    out = ((acts / norm) @ w["W_dec"] + w["b_dec"]) @ matrix.inverse() + mean
    folder = folder_of(tmp_path_factory.mktemp("sae"), w, config)
    tensors = {"mean": mean, "matrix": matrix, "inverse_matrix": matrix.inverse().contiguous()}
    save_file(tensors, folder / "activation_whitening.safetensors")
    ours = compute(load(folder), x)
    torch.testing.assert_close(ours[0], acts, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ours[1], out, rtol=1e-7, atol=1e-7)


def test_whitening_that_does_not_fit_is_refused(tmp_path):
    folder = folder_of(tmp_path, weights(), {"normalize_activations": "covariance_whitening"})
    square = torch.eye(D, dtype=torch.float64)
    for wrong in ({"mean": torch.zeros(D)}, {"mean": torch.zeros(D), "matrix": square, "inverse_matrix": 2 * square[:2]},
                  {"mean": torch.full((D,), torch.nan), "matrix": square, "inverse_matrix": 2 * square}):  # fmt: skip
        save_file(wrong, folder / "activation_whitening.safetensors")
        with pytest.raises(CorruptFile, match="of shape"):
            load(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": false}')
    with pytest.raises(FileError, match="cannot be whitened"):
        load(folder)


def test_weights_in_eight_bits_are_refused(tmp_path):
    w = weights()
    w["W_enc"] = w["W_enc"].to(torch.float8_e4m3fn)
    with pytest.raises(CorruptFile, match=r"W_enc is of dtype float8_e4m3fn, expected F64, F32, F16, BF16"):
        load(folder_of(tmp_path, w))


def test_missing_parts_are_named(tmp_path):
    folder = folder_of(tmp_path / "a", weights())
    (folder / "cfg.json").unlink()
    with pytest.raises(CorruptFile, match=r"no cfg\.json"):
        load(folder / "sae_weights.safetensors")
    folder = folder_of(tmp_path / "b", weights())
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(CorruptFile, match="and no weights beside it"):
        load(folder)
    incomplete = weights()
    del incomplete["b_dec"]
    with pytest.raises(CorruptFile, match="no b_dec"):
        load(folder_of(tmp_path / "c", incomplete))
    with pytest.raises(CorruptFile, match="b_enc has the shape"):
        load(folder_of(tmp_path / "d", weights() | {"b_enc": torch.zeros(3)}, {"apply_b_dec_to_input": True}))
    with pytest.raises(CorruptFile, match="no threshold"):
        load(folder_of(tmp_path / "e", weights(), {"architecture": "jumprelu"}))
