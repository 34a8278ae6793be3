"""Weights and folders as SAELens writes them, and what they compute."""

import json

import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

from gemscope import load_sae
from gemscope.features.sae import SAE

D, F = 6, 16
quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


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


def random_sae(seed=0, **options):
    sae = SAE(D, F, **options)
    random = torch.Generator().manual_seed(seed)
    sae.load_state_dict({name: torch.rand(w.shape, generator=random) for name, w in sae.state_dict().items()})
    return sae


MODELS = ["google/gemma-2-2b", "google/gemma-3-4b-it", "gpt2", "EleutherAI/pythia-70m", "Qwen/Qwen3-8B"]
