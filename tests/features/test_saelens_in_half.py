"""SAELens's folders in half precision: what is folded in is not rounded back."""

import pytest
import torch

from gemscope import load_sae
from gemscope.features.files.saving import save_sae
from gemscope.features.sae import SAEInfo
from saelens_folders import D, compute, folder_of, inputs, random_sae, threshold, weights

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
