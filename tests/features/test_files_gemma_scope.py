"""Gemma Scope 1 and 2 in their real layouts: the tutorial's arithmetic comes out, at the right site."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gemscope import load_sae
from gemscope.errors import CorruptFile, FileError, NotFinite, UnsafeFile

D_IN, D_SAE = 6, 20


def params(d_out=D_IN):
    random = np.random.default_rng(0)
    return {
        "W_enc": random.standard_normal((D_IN, D_SAE)).astype(np.float32),
        "W_dec": random.standard_normal((D_SAE, d_out)).astype(np.float32),
        "b_enc": random.standard_normal(D_SAE).astype(np.float32),
        "b_dec": random.standard_normal(d_out).astype(np.float32),
        "threshold": random.random(D_SAE).astype(np.float32) + 0.1,
    }


def tutorial(params, x):
    """The class of the Gemma Scope tutorial, as arithmetic."""
    p = {name: torch.from_numpy(array) for name, array in params.items()}
    pre = x @ p["W_enc"] + p["b_enc"]
    acts = (pre > p["threshold"]) * torch.relu(pre)
    return acts, acts @ p["W_dec"] + p["b_dec"]


def gemma_scope_1(folder, arrays=None, *, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(folder / "params.npz", **(arrays or params()))
    return folder


def gemma_scope_2(folder, arrays=None, *, config=None, skip=None):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.replace("W_", "w_"): torch.from_numpy(array) for name, array in (arrays or params()).items()}
    if skip is not None:
        tensors["affine_skip_connection"] = skip
    save_file(tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def hooks(read, write, **more):
    config = {"width": D_SAE, "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 42}
    return config | {"hf_hook_point_in": read, "hf_hook_point_out": write, "affine_connection": False} | more


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("compressed", [False, True])
def test_gemma_scope_1_gives_the_tutorials_numbers(tmp_path, compressed):
    sae = load_sae(gemma_scope_1(tmp_path / "sae", compressed=compressed))
    x = torch.randn(3, 4, D_IN)
    acts, out = tutorial(params(), x)
    torch.testing.assert_close(sae.encode(x).to_dense(), acts)
    torch.testing.assert_close(sae(x), out)
    assert sae.gate == "jumprelu"
    assert not any(weight.requires_grad for weight in sae.parameters())
    assert (tmp_path / "cache" / "unpacked").exists() == compressed


@pytest.mark.parametrize(
    ("place", "site", "site_out"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "20.res", "20.res"),
        ("gemma-scope-2b-pt-mlp/layer_4/width_16k/average_l0_85", "4.mlp", "4.mlp"),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "0.att", "0.att"),
        ("gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", "0.transcoder_nogain", "0.mlp"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "embed", "embed"),
        ("models--google--gemma-scope-9b-it-res/snapshots/0123abc/layer_9/width_16k/average_l0_88", "9.res", "9.res"),
    ],
)
def test_gemma_scope_1_sites_come_from_where_the_file_lies(tmp_path, place, site, site_out):
    sae = load_sae(gemma_scope_1(tmp_path / place) / "params.npz")
    assert (str(sae.site), str(sae.site_out)) == (site, site_out)
    assert sae.is_transcoder == ("transcoders" in place)
    assert sae.info.model == ("google/gemma-2-9b-it" if "9b-it" in place else "google/gemma-2-2b")
    assert sae.info.declared_l0 == int(place.rsplit("_", 1)[1])


def test_a_file_that_does_not_say_its_site_can_be_told(tmp_path):
    folder = gemma_scope_1(tmp_path / "sae")
    assert load_sae(folder).site is None
    sae = load_sae(folder, site="20.res")
    assert str(sae.site) == "20.res"
    assert not sae.is_transcoder


def test_transcoders_may_write_their_names_in_lower_case(tmp_path):
    lower = {name.replace("W_", "w_"): array for name, array in params(d_out=4).items()}
    sae = load_sae(gemma_scope_1(tmp_path / "sae", lower), site="3.transcoder_nogain")
    x = torch.randn(5, D_IN)
    torch.testing.assert_close(sae(x), tutorial(params(d_out=4), x)[1])
    assert (sae.d_in, sae.d_out) == (D_IN, 4)


def test_raw_weights_stay_on_the_disk_until_another_dtype_is_wanted(tmp_path):
    folder = gemma_scope_1(tmp_path / "sae")
    stored = load_sae(folder)
    assert stored.W_enc.data_ptr() % 64  # where the zip put it, not where an allocator would
    half = load_sae(folder, dtype=torch.bfloat16)
    assert (half.W_enc.dtype, half.threshold.dtype) == (torch.bfloat16, torch.float32)
    double = {name: array.astype(np.float64) for name, array in params().items()}
    assert load_sae(gemma_scope_1(tmp_path / "double", double)).W_enc.dtype == torch.float32
    assert load_sae(tmp_path / "double", dtype=None).W_enc.dtype == torch.float64


@pytest.mark.parametrize(
    ("read", "write", "site", "site_out"),
    [
        ("model.layers.5.output", "model.layers.5.output", "5.res", "5.res"),
        ("model.layers.5.self_attn.o_proj.input",) * 2 + ("5.att",) * 2,
        ("model.layers.5.post_feedforward_layernorm.output",) * 2 + ("5.mlp",) * 2,
        (
            "model.layers.5.pre_feedforward_layernorm.output",
            "model.layers.5.post_feedforward_layernorm.output",
            "5.transcoder",
            "5.mlp",
        ),
    ],
)
def test_gemma_scope_2_sites_come_from_its_configuration(tmp_path, read, write, site, site_out):
    sae = load_sae(gemma_scope_2(tmp_path / "sae", config=hooks(read, write)))
    assert (str(sae.site), str(sae.site_out)) == (site, site_out)
    assert (sae.info.model, sae.info.declared_l0) == ("google/gemma-3-1b-pt", 42)
    x = torch.randn(5, D_IN)
    acts, out = tutorial(params(), x)
    torch.testing.assert_close(sae.encode(x).to_dense(), acts)
    torch.testing.assert_close(sae(x), out)


@pytest.mark.parametrize(
    ("place", "site", "site_out"),
    [
        ("resid_post/layer_17_width_16k_l0_medium", "17.res", "17.res"),
        ("attn_out_all/layer_3_width_16k_l0_big", "3.att", "3.att"),
        ("mlp_out/layer_9_width_65k_l0_small", "9.mlp", "9.mlp"),
        ("transcoder_all/layer_0_width_16k_l0_big", "0.transcoder", "0.mlp"),
    ],
)
def test_without_a_configuration_the_names_say_it(tmp_path, place, site, site_out):
    sae = load_sae(gemma_scope_2(tmp_path / "gemma-scope-2-4b-pt" / place))
    assert (str(sae.site), str(sae.site_out)) == (site, site_out)
    assert sae.info.model == "google/gemma-3-4b-pt"


def test_an_affine_skip_is_turned_to_our_orientation(tmp_path):
    skip = torch.randn(D_IN, 4)
    config = hooks(
        "model.layers.2.pre_feedforward_layernorm.output",
        "model.layers.2.post_feedforward_layernorm.output",
        affine_connection=True,
        type="transcoder",
    )
    sae = load_sae(gemma_scope_2(tmp_path / "sae", params(d_out=4), config=config, skip=skip))
    x = torch.randn(5, D_IN)
    torch.testing.assert_close(sae(x), tutorial(params(d_out=4), x)[1] + x @ skip)
    assert sae.W_skip.shape == (4, D_IN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_hook_point_in": "model.layers.5.mystery.output"}, "mystery"),
        ({"type": "crosscoder"}, "crosscoder"),
        ({"architecture": "topk"}, "topk"),
        ({"width": D_SAE + 1}, "21 features, the weights have 20"),
        ({"affine_connection": True}, "affine_connection=true"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path, change, message):
    config = hooks("model.layers.5.output", "model.layers.5.output") | change
    with pytest.raises(FileError, match=message) as caught:
        load_sae(gemma_scope_2(tmp_path / "sae", config=config))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_clear_line(tmp_path):
    folder = gemma_scope_2(tmp_path / "sae", config=hooks("model.layers.5.output", "model.layers.5.output"))
    weights = (folder / "params.safetensors").read_bytes()
    for size in (0, 7, 100, len(weights) - 1):
        (folder / "params.safetensors").write_bytes(weights[:size])
        with pytest.raises(CorruptFile, match="no whole safetensors file"):
            load_sae(folder)
    (folder / "params.safetensors").write_bytes(weights)
    for text in ("", "{", "[1]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(CorruptFile, match=r"config\.json"):
            load_sae(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b_enc": None}, CorruptFile, "no b_enc: it holds W_dec, W_enc, b_dec, threshold"),
        ({"threshold": np.ones(3, np.float32)}, CorruptFile, r"threshold has the shape \(3,\), expected \(20,\)"),
        ({"W_dec": np.ones((19, 6), np.float32)}, CorruptFile, r"W_dec has the shape \(19, 6\), expected \(20, 6\)"),
        ({"W_enc": np.ones(6, np.float32)}, CorruptFile, "expected two axes"),
        ({"W_enc": np.ones((6, 0), np.float32)}, CorruptFile, "no weights"),
        ({"b_dec": np.arange(6)}, CorruptFile, "int64"),
        ({"surprise": np.ones(2, np.float32)}, CorruptFile, "surprise"),
        ({"b_dec": np.full(6, np.nan, np.float32)}, NotFinite, "b_dec holds NaN or Inf"),
        ({"W_enc": np.full((6, 20), np.inf, np.float32)}, NotFinite, "W_enc holds NaN or Inf"),
        ({"threshold": np.full(20, -np.inf, np.float32)}, NotFinite, "threshold"),
        ({"W_dec": np.array([None])}, UnsafeFile, "pickle"),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, error, message):
    arrays = {name: array for name, array in (params() | change).items() if array is not None}
    with pytest.raises(error, match=message) as caught:
        load_sae(gemma_scope_1(tmp_path / "sae", arrays))
    assert "\n" not in str(caught.value)


def test_one_nan_among_many_is_found_wherever_it_is(tmp_path):
    for row, column in ((0, 0), (2, 7), (5, 19)):
        arrays = params()
        arrays["W_enc"] = np.asfortranarray(arrays["W_enc"])
        arrays["W_enc"][row, column] = np.nan
        with pytest.raises(NotFinite, match="W_enc"):
            load_sae(gemma_scope_1(tmp_path / "sae", arrays))


def test_weights_too_large_for_the_dtype_asked_for_say_so(tmp_path):
    arrays = params() | {"W_dec": np.full((D_SAE, D_IN), 1e6, np.float32)}
    folder = gemma_scope_1(tmp_path / "sae", arrays)
    load_sae(folder)
    with pytest.raises(NotFinite, match=r"does not fit torch\.float16"):
        load_sae(folder, dtype=torch.float16)
