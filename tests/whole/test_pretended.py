"""The device that is not there has a real one's rules: or tests that pass on it would show nothing."""

import pytest
import torch

from pretended import pretended


def test_what_is_there_does_not_mix_with_what_is_here() -> None:
    with pretended() as (device, _):
        there, here = torch.arange(6.0, device=device), torch.arange(6.0)
        assert there.device == device
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: there.add_(here),
            lambda: here.index_add_(0, torch.zeros(6, dtype=torch.int64, device=device), here),
            lambda: torch.where(there > 2, here, there),
        ):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError, match="not supported"):
            there.numpy()
        assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4, 5, 6]  # a number is nobody's
        assert there[torch.tensor([1, 2])].device == device  # and so are places


def test_the_numbers_are_those_of_the_processor() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(3, 2)
    expected = layer(x)
    expected.pow(2).sum().backward()
    assert layer.weight.grad is not None
    gradient, layer.weight.grad = layer.weight.grad, None
    with pretended() as (device, _):
        layer.to(device)
        found = layer(x.to(device))
        assert layer.weight.device == found.device == device
        found.pow(2).sum().backward()
        assert layer.weight.grad is not None
        assert torch.equal(found.detach().cpu(), expected.detach())
        assert torch.equal(layer.weight.grad.cpu(), gradient)
        view = (rows := torch.zeros(3, 2, device=device))[1]
        view += 1  # views write through
        assert rows.tolist() == [[0, 0], [1, 1], [0, 0]]
        out = torch.empty(2, device=device)
        torch.sum(rows, 0, out=out)
        assert out.tolist() == [1, 1]


def test_what_is_copied_and_what_waits_is_counted() -> None:
    with pretended() as (device, traffic):
        x = torch.arange(6.0).to(device)
        y = x.view(2, 3) * 2 + torch.ones(3, device=device)
        y.add_(1).clamp_(min=0)
        assert traffic == {"to": 1}
        y.sum().item()
        x[x > 2]
        x.nonzero()
        x.cpu()
        torch.zeros(6).copy_(x)
        assert traffic == {"to": 1, "item": 1, "mask": 1, "nonzero": 1, "from": 2}
        assert traffic.waits == 5
        x[torch.tensor([0, 1])]
        torch.tensor([1, 2], device=device)
        assert traffic["to"] == 3
        assert traffic.waits == 5


def test_sums_that_have_no_order_there_are_refused() -> None:
    with pretended() as (device, _):
        total, places = torch.zeros(3, device=device), torch.tensor([0, 2, 0], device=device)
        with pytest.raises(RuntimeError, match="in any order"):
            total.index_add_(0, places, torch.full((3,), 0.1, device=device))
        total.index_add_(0, places[:2], torch.full((2,), 0.5, device=device))
        total.index_add_(0, places, torch.ones(3, device=device))  # counts have none to lose
        assert total.tolist() == [2.5, 0, 1.5]
        torch.zeros(3, dtype=torch.int64, device=device).index_add_(0, places, torch.ones_like(places))
