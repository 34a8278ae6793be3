"""SAELens folders: what SAELens would compute is what our SAE computes, or the folder is refused."""

import json
import math
import resource

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gemscope import load_sae
from gemscope.activations.families import FAMILIES
from gemscope.activations.site import KINDS, Site
from gemscope.errors import CorruptFile, FileError, InputError, StorageFull
from gemscope.features.files.hook_names import hook_of, module_of, site_of_hook, site_of_module
from gemscope.features.files.saelens_write import save_sae
from gemscope.features.sae import SAE, SAEInfo

D, F = 6, 16
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def weights(seed=0, d_out=D, **more):
    """float64, so that equality means algebra and not rounding."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, d_out), "b_dec": (d_out,)}
    tensors = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
    return tensors | {name: make(random) for name, make in more.items()}


def threshold(random):
    return torch.rand(F, generator=random, dtype=torch.float64)


def vector(random):
    return torch.randn(F, generator=random, dtype=torch.float64)


def folder_of(path, tensors, config=None, **metadata):
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "sae_weights.safetensors")
    plain = {
        "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none", "architecture": "standard",
    }  # fmt: skip
    about = {"sae_lens_version": "6.54.12", "model_name": "gemma-2-2b", "hook_name": "blocks.7.hook_resid_post"}
    (path / "cfg.json").write_text(json.dumps(plain | {"metadata": about | metadata} | (config or {})))
    return path


def inputs():
    return torch.randn(40, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def compute(sae, x):
    """Features and output in float64, without the rounding of x to float32 that SAE does."""
    pre = x @ sae.W_enc + sae.b_enc
    acts = sae.gated(pre)
    out = acts @ sae.W_dec + sae.b_dec
    return acts, out if sae.W_skip is None else out + x @ sae.W_skip.T


def load(path, **options):
    return load_sae(path, dtype=None, **options)


def assert_computes(sae, acts, out):
    ours = compute(sae, inputs())
    torch.testing.assert_close(ours[0], acts, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1], out, rtol=1e-9, atol=1e-12)


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
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
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
        ({"hook_name": "blocks.0.hook_resid_pre"}, "hook_resid_pre"),
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
    with pytest.raises(CorruptFile, match="no sae_weights"):
        load(folder)
    incomplete = weights()
    del incomplete["b_dec"]
    with pytest.raises(CorruptFile, match="no b_dec"):
        load(folder_of(tmp_path / "c", incomplete))
    with pytest.raises(CorruptFile, match="b_enc has the shape"):
        load(folder_of(tmp_path / "d", weights() | {"b_enc": torch.zeros(3)}, {"apply_b_dec_to_input": True}))
    with pytest.raises(CorruptFile, match="no threshold"):
        load(folder_of(tmp_path / "e", weights(), {"architecture": "jumprelu"}))


# --- files in half precision ----------------------------------------------------------------------------------------

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])


def half_weights(half, seed=3, n_features=256, **more):
    """As a file in half precision holds them, and the same numbers in float64."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, n_features), "b_enc": (n_features,), "W_dec": (n_features, D), "b_dec": (D,)}
    shapes |= dict.fromkeys(more, (n_features,))
    made = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
    stored = {name: more.get(name, lambda x: x)(tensor).to(half) for name, tensor in made.items()}
    return stored, {name: tensor.double() for name, tensor in stored.items()}


def assert_exact(sae, z, floor, out=None):
    """What a gate opens for is what it opens for in float64: `z` beside `floor` [tokens, features]; and nothing that
    was folded is rounded below float32."""
    x = inputs()
    pre = x @ sae.W_enc.double() + sae.b_enc.double()
    gap = pre - (0 if sae.threshold is None else sae.threshold.double())
    assert ((gap - (z - floor)).abs() <= 2e-5 * (1 + z.abs())).all()
    clear = (z - floor).abs() > 1e-4
    assert torch.equal((gap > 0)[clear], (z > floor)[clear])
    if out is not None:
        assert_near(compute(sae.double(), x)[1], out)


def assert_near(ours, exact):
    assert ((ours.double() - exact).abs().max() / exact.abs().max()).item() < 1e-6


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_bias_folded_from_a_half_precision_file_is_not_rounded_back(tmp_path, half, dtype):
    stored, w = half_weights(half)
    folder = folder_of(tmp_path, stored, {"d_sae": 256, "apply_b_dec_to_input": True})
    sae = load_sae(folder, dtype=dtype)
    assert_exact(sae, (inputs() - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0.0)
    assert sae.W_enc.dtype == (dtype or half)  # nothing was folded into it


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_norm_factor_folded_into_a_half_precision_file_is_not_rounded_back(tmp_path, half, dtype):
    (stored, w), s = half_weights(half, threshold=torch.abs), 0.3713
    config = {"architecture": "jumprelu", "d_sae": 256, "normalize_activations": "expected_average_only_in",
              "norm_scaling_factor": s}  # fmt: skip
    z = s * inputs() @ w["W_enc"] + w["b_enc"]
    acts = z.relu() * (z > w["threshold"])
    sae = load_sae(folder_of(tmp_path, stored, config), dtype=dtype)
    assert_exact(sae, z, w["threshold"])
    assert_near(sae.W_dec, w["W_dec"] / s)
    assert_near(sae.b_dec, w["b_dec"] / s)
    kept = (z - w["threshold"]).abs().min(-1).values > 1e-4
    assert_near(compute(sae.double(), inputs())[1][kept], ((acts @ w["W_dec"] + w["b_dec"]) / s)[kept])


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_decoder_norms_folded_into_a_half_precision_file_are_not_rounded_back(tmp_path, half, dtype):
    stored, w = half_weights(half)
    config = {"architecture": "topk", "k": 7, "d_sae": 256, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(folder_of(tmp_path, stored, config), dtype=dtype)
    norm = w["W_dec"].norm(dim=1)
    assert_exact(sae, (inputs() @ w["W_enc"] + w["b_enc"]) * norm, 0.0)
    assert_near(sae.W_dec, w["W_dec"] / norm[:, None])


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_gate_folded_into_a_half_precision_file_is_not_rounded_back(tmp_path, half, dtype):
    stored, w = half_weights(half, b_gate=lambda x: x, b_mag=lambda x: x, r_mag=lambda x: x / 4)
    del stored["b_enc"]
    sae = load_sae(folder_of(tmp_path, stored, {"architecture": "gated", "d_sae": 256}), dtype=dtype)
    grown = w["r_mag"].exp()
    z = inputs() @ (w["W_enc"] * grown) + w["b_mag"]
    assert_exact(sae, z, w["b_mag"] - w["b_gate"] * grown)


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_thresholds_of_a_half_precision_file_are_not_rounded_back(tmp_path, half, dtype):
    stored, w = half_weights(half, log_threshold=lambda x: x / 3)
    jumprelu = load_sae(folder_of(tmp_path / "a", stored, {"architecture": "jumprelu", "d_sae": 256}), dtype=dtype)
    assert_near(jumprelu.threshold, w["log_threshold"].exp())
    del stored["log_threshold"]
    stored["topk_threshold"] = torch.tensor(0.7123456, dtype=torch.float64)
    config = {"architecture": "batchtopk", "k": 5, "d_sae": 256}
    assert_near(
        load_sae(folder_of(tmp_path / "b", stored, config), dtype=dtype).threshold,
        torch.full((256,), 0.7123456, dtype=torch.float64),
    )


def test_biases_and_thresholds_are_never_narrowed_below_float32(tmp_path):
    w = weights(threshold=threshold)
    sae = load_sae(folder_of(tmp_path, w, {"architecture": "jumprelu"}), dtype=torch.bfloat16)
    assert {name for name, weight in sae.state_dict().items() if weight.dtype == torch.bfloat16} == {"W_enc", "W_dec"}
    for name in ("b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(sae, name), w[name].float())


def test_gemmas_embedding_in_half_precision_is_saved_without_rounding(tmp_path):
    sae = random_sae(site="embed", info=SAEInfo(model="google/gemma-2-2b")).bfloat16()
    again = load_sae(save_sae(sae, tmp_path / "a"))
    assert_near(again.W_enc, sae.W_enc.double())
    assert_near(again.b_dec, sae.b_dec.double())


# --- writing --------------------------------------------------------------------------------------------------------


def random_sae(seed=0, **options):
    sae = SAE(D, F, **options)
    random = torch.Generator().manual_seed(seed)
    sae.load_state_dict({name: torch.rand(w.shape, generator=random) for name, w in sae.state_dict().items()})
    return sae


MODELS = ["google/gemma-2-2b", "google/gemma-3-4b-it", "gpt2", "EleutherAI/pythia-70m", "Qwen/Qwen3-8B"]
GATES = st.sampled_from(["jumprelu", "relu", "topk"])


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


# --- names of places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embed"])
def test_every_site_has_a_hook_and_mostly_a_module_that_lead_back(kind, model):
    if kind == "mlp_raw" and "gemma" not in model:
        return
    site = Site(11, kind)
    assert site_of_hook(hook_of(site), model, "a file") == site
    module = module_of(site, model)
    assert (module is None) == (kind == "transcoder_nogain")
    if module is not None:
        assert site_of_module(module, model, "a file") == site


@pytest.mark.parametrize(
    ("name", "model", "site"),
    [
        ("model.layers.7", "HuggingFaceTB/SmolLM2-135M", "7.res"),
        ("model.layers.7.pre_feedforward_layernorm.output", None, "7.transcoder"),
        ("model.layers.7.pre_feedforward_layernorm.input", "google/gemma-2-2b", "7.mid"),
        ("model.language_model.layers.7.output", "google/gemma-3-4b-it", "7.res"),
        ("model.layers.7.mlp.output", "google/gemma-2-2b", "7.mlp_raw"),
        ("model.layers.7.mlp", "google/gemma-2b", "7.mlp"),  # the first Gemma has no second norm
        ("model.layers.7.post_attention_layernorm.output", "meta-llama/Llama-3.2-1B", "7.transcoder"),
        ("model.layers.7.post_attention_layernorm.output", "google/gemma-2-2b", "7.att_out"),
        ("transformer.h.7.attn.c_proj.input", "gpt2", "7.att"),
        ("gpt_neox.layers.7.mlp", "EleutherAI/pythia-70m", "7.mlp"),
        ("model.layers.7.mlp", "allenai/OLMo-2-0425-1B", "7.mlp_raw"),
        ("model.layers.7.mlp.input", "allenai/OLMo-2-0425-1B", "7.mid"),
        ("model.layers.7.mlp.input", "microsoft/phi-2", "7.transcoder"),
        ("model.layers.7.self_attn.dense.input", "microsoft/phi-2", "7.att"),
        ("model.layers.7.post_attention_layernorm.output", "microsoft/Phi-3-mini-4k-instruct", "7.transcoder"),
        ("transformer.h.7.mlp.dense_4h_to_h", "bigscience/bloom-560m", "7.mlp"),
        ("transformer.h.7.ln_mlp.output", "tiiuae/falcon-40b", "7.transcoder"),
        ("transformer.h.7.mlp.input", "EleutherAI/gpt-j-6b", "7.transcoder"),
        ("model.decoder.layers.7.fc2", "facebook/opt-125m", "7.mlp"),
        ("model.decoder.layers.7.final_layer_norm.input", None, "7.mid"),
        ("model.layers.7", "ibm-granite/granite-3.0-2b-base", "7.res"),
    ],
)
def test_modules_are_read_as_their_family_means_them(name, model, site):
    assert str(site_of_module(name, model, "a file")) == site


PUBLISHED = {
    "bigscience/bloom-560m": "bloom", "tiiuae/falcon-7b": "falcon", "google/gemma-2b": "gemma", "gemma-1.1-7b-it": "gemma",
    "gemma-2-9b": "gemma2", "google/gemma-3-270m": "gemma3", "gpt2-small": "gpt2", "pythia-70m-deduped": "gpt_neox",
    "openai/gpt-oss-20b": "gpt_oss", "EleutherAI/gpt-j-6b": "gptj", "ibm-granite/granite-3.0-2b-base": "granite",
    "meta-llama/Llama-3.1-8B": "llama", "mistralai/Ministral-8B-Instruct-2410": "ministral", "mistral-7b": "mistral",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral", "allenai/OLMo-2-0425-1B": "olmo2", "facebook/opt-125m": "opt",
    "microsoft/phi-1_5": "phi", "microsoft/phi-4": "phi3", "Qwen/Qwen2.5-1.5B": "qwen2", "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen1.5-MoE-A2.7B": "qwen2_moe", "Qwen/Qwen3-30B-A3B": "qwen3_moe", "HuggingFaceTB/SmolLM3-3B": "smollm3",
    "stabilityai/stablelm-2-1_6b": "stablelm", "bigcode/starcoder2-3b": "starcoder2",
}  # fmt: skip


def test_a_name_is_told_for_every_family() -> None:
    assert {*PUBLISHED.values(), "gemma3_text"} == set(FAMILIES)


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_place_that_a_module_has_leads_back_in_every_family(model) -> None:
    for case in FAMILIES[PUBLISHED[model]]:
        for kind, point in case.points.items():
            name = f"{case.layers[0]}.5{'.' if point.module else ''}{point.module}.{point.end}"
            if point.transform == "plain" and not (model.startswith("ibm") and kind in ("att_out", "mlp")):
                assert site_of_module(name, model, "a file") == Site(5, kind), name
    kinds = {kind for case in FAMILIES[PUBLISHED[model]] for kind in case.points}
    for kind in kinds - {"transcoder_nogain"}:
        module = module_of(Site(5, kind), model)
        assert module is None or site_of_module(module, model, "a file") == Site(5, kind)


def test_a_place_whose_values_are_scaled_or_normed_is_not_taken_for_another() -> None:
    with pytest.raises(FileError, match="a place that is not known here"):
        site_of_module("model.layers.5.mlp", "ibm-granite/granite-3.0-2b-base", "a file")  # before its multiplier
    with pytest.raises(FileError, match="a place that is not known here"):
        site_of_hook("hook_embed", "bigscience/bloom-560m", "a file")  # behind its norm
