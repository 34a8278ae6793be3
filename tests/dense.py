"""The losses dense, by autograd, as the papers write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gemscope.training.objective import Terms, step
from gemscope.training.weights import Weights


class Jump(torch.autograd.Function):
    """z · 1[z > θ] · 1[z > 0] and 1[z > θ] · 1[z > 0], with their pseudo-derivatives in θ, and in z where asked for."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float, to_input: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, theta)
        ctx.width, ctx.to_input = width, to_input
        on = (z > theta) & (z > 0)
        return z * on, on.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (by_f, by_on), (z, theta) = grads, ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2) & (z > 0)
        pull = (theta * by_f + by_on) * kernel / ctx.width
        into = by_f * ((z > theta) & (z > 0)) + (pull if ctx.to_input else 0)
        return into, -pull.sum(0), None, None


def gated(z: Tensor, w: dict[str, Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
    """Activations, and where there are some."""
    if terms.gate == "jumprelu":
        out: tuple[Tensor, Tensor] = Jump.apply(z, w["threshold"], terms.bandwidth, terms.to_input)
        return out
    positive = torch.relu(z)
    least = torch.zeros(())
    if terms.gate == "topk":
        least = positive.topk(round(terms.target), dim=-1).values[:, -1:]
    elif terms.gate == "batchtopk":
        written = positive * w["W_dec"].norm(dim=-1)
        least = written.flatten().topk(round(terms.target * len(z))).values[-1]
        on = (written >= least) & (positive > 0)
        return positive * on, on.to(z.dtype)
    on = (positive >= least) & (positive > 0)
    return positive * on, on.to(z.dtype)


def penalty(f: Tensor, on: Tensor, norms: Tensor, terms: Terms) -> Tensor:
    l0 = on.sum(-1)
    if terms.penalty == "target":
        often = (on.mean(0) - terms.frequency_limit).clamp(min=0).pow(2).sum()
        return terms.sparsity * (l0.mean() / terms.target - 1) ** 2 + terms.frequency * often
    if terms.penalty == "l0":
        return terms.sparsity * l0.mean()
    if terms.penalty == "quadratic":
        return terms.sparsity * (2 / terms.target * (l0 - terms.target) ** 2).mean()
    if terms.penalty == "tanh":
        return terms.sparsity * torch.tanh(4 * f * norms).sum(-1).mean()
    if terms.penalty == "l1":
        return terms.sparsity * (f * norms).sum(-1).mean()
    return torch.zeros((), dtype=f.dtype)


def unexplained(error: Tensor, z: Tensor, decoder: Tensor, k: int) -> Tensor:
    """What the k largest of these pre-activations leave of an error, as a share of its variance."""
    kept = z.topk(k, dim=-1)
    f = torch.zeros_like(z).scatter(1, kept.indices, torch.relu(kept.values))
    return (error - f @ decoder).pow(2).sum() / (error - error.mean(0)).pow(2).sum()


def dense(
    weights: Weights, x: Tensor, y: Tensor, terms: Terms, silent: Tensor | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """In float64, by autograd."""
    w = {name: tensor.double().requires_grad_() for name, tensor in weights.tensors().items()}
    x, y = x.double(), y.double()
    z = x @ w["W_enc"].T + w["b_enc"]
    f, on = gated(z, w, terms)
    beside = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
    prefixes = terms.prefixes or (z.shape[1],)
    errors = [(f[:, :m] @ w["W_dec"][:m] + beside - y).pow(2).sum(-1).mean() for m in prefixes]
    norms = sum(part.norm(dim=-1) for part in w["W_dec"].split(terms.parts or w["W_dec"].shape[1], dim=-1))
    loss = sum(errors) / len(errors) + penalty(f, on, norms, terms)
    told = {"error": errors[-1].item(), "l0": on.sum(-1).mean().item(), "auxiliary": 0.0}
    if terms.auxiliary and silent is not None and silent.any():
        error = (y - f @ w["W_dec"] - beside).detach()
        left = unexplained(error, z[:, silent], w["W_dec"][silent], min(int(silent.sum()), max(1, x.shape[1] // 2)))
        told["auxiliary"] = left.item()
        loss = loss + terms.auxiliary * left
    loss.backward()
    near = ((z - w["threshold"]).abs() < terms.bandwidth / 2) & (z > 0)
    told |= {"loss": loss.item(), "window": near.sum(-1).double().mean().item() if terms.gate == "jumprelu" else 0.0}
    return told, {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in w.items()}


def random_weights(
    features: int, d: int, seed: int, *, theta: float = 0.3, spread: float = 0.3, out: int | None = None
) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Weights(
        W_enc=normal(features, d) / math.sqrt(d),
        b_enc=0.2 * normal(features),
        W_dec=normal(features, out or d) / math.sqrt(d),
        b_dec=0.1 * normal(out or d),
        threshold=(theta + spread * normal(features)).clamp(min=0),  # some 0, some below ε/2
        W_skip=None if out is None else normal(out, d) / d,
    )


def assert_equals_dense(
    weights: Weights,
    x: Tensor,
    way: dict[str, Any],
    *,
    y: Tensor | None = None,
    silent: Tensor | None = None,
    **options: Any,
) -> None:
    y = x if y is None else y
    terms = Terms(**options)
    expected, expected_grads = dense(weights, x, y, terms, silent)
    told, grads = step(weights, x, y, terms, silent=silent, **way)
    for name, value in expected.items():
        assert getattr(told, name) == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for name, grad in grads.tensors().items():
        wanted = expected_grads[name]
        assert (grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12, name
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item() + 1e-12)
