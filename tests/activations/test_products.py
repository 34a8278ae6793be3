"""Matrix products by the quicker library are the same products."""

from __future__ import annotations

import pytest
import torch

from gemscope.activations import products
from gemscope.testing import tiny_model


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Whatever the processor is; gives the shapes of what comes out of it."""
    if products._ONEDNN is None:
        pytest.skip("this torch has no such product")
    seen: list[tuple[int, ...]] = []
    multiply = products._ONEDNN

    def noted(*given: object) -> torch.Tensor:
        seen.append(tuple((product := multiply(*given)).shape))
        return product

    monkeypatch.setattr(products, "_ONEDNN", noted)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return seen


def test_products_and_gradients_are_the_same_but_for_rounding(by_onednn: list[tuple[int, ...]]) -> None:
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(7, 33, generator=dice, requires_grad=True)
    weight = torch.randn(33, 20, generator=dice)
    with products.quick():
        y = x @ weight @ weight.T
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
    exact = x.detach().double().requires_grad_()
    wanted = exact @ weight.double() @ weight.double().T
    (slope,) = torch.autograd.grad(wanted.square().sum(), exact)
    torch.testing.assert_close(y.double(), wanted.detach(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-1)
    assert by_onednn == [(7, 20), (7, 33), (7, 20), (7, 33)]
    x @ weight
    assert len(by_onednn) == 4  # afterwards it is torch's choice again


def test_a_jacobian_is_made_by_them_and_is_the_same(by_onednn: list[tuple[int, ...]]) -> None:
    model = tiny_model("llama")
    found = model.jacobian("the sun and the moon", "1.res")
    assert len(by_onednn) > 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        plain = model.jacobian("the sun and the moon", "1.res")
    torch.testing.assert_close(found.this, plain.this, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.later, plain.later, atol=1e-5, rtol=0)


def test_what_is_not_in_float32_or_empty_or_one_number_for_many_is_left_to_torch(
    by_onednn: list[tuple[int, ...]],
) -> None:
    with products.quick():
        for first, second in (
            (torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)),
            (torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16)),
            (torch.ones(0, 3), torch.ones(3, 2)),
            (torch.ones(2, 0), torch.ones(0, 2)),
            (torch.ones(2, 3), torch.zeros(1).expand(3, 2)),  # as forward mode has them of weights
            (torch.ones(1).expand(2, 3), torch.ones(3, 2)),
        ):
            assert (first @ second).shape == (len(first), 2)
    assert not by_onednn
