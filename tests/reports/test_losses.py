"""Losses of a model with something else at a site, against its logits gone through token by token in float64."""

from __future__ import annotations

import math

import pytest
import torch

import gemscope as gs
from gemscope.activations.site import Site
from gemscope.edits.splice import Constant
from gemscope.reports import losses as module
from gemscope.reports.losses import Change, Kept, Losses, losses
from gemscope.testing import tiny_model

SITES = (Site(0, "res"), Site(2, "mlp"))


@pytest.fixture(scope="module")
def model() -> gs.LanguageModel:
    return tiny_model("llama")


@pytest.mark.parametrize("most", [1 << 28, 1])
def test_losses_and_kl_are_means_over_next_tokens_of_what_counts_at_each_site(
    model: gs.LanguageModel, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS", most)  # all rows in one pass, or one at a time
    tokens = model.tokens(["the cat sat on the mat and", "another text", "it was so"])
    lot = torch.Generator().manual_seed(0)
    counted = {site: tokens.real & (torch.rand(tokens.real.shape, generator=lot) < 0.7) for site in SITES}
    vectors = {site: torch.randn(model.width(site), generator=lot) for site in SITES}
    edits = {site: Constant(site, vectors[site], every_token=True) for site in SITES}
    asked: list[int] = []

    def change(site: Site) -> Change:
        return Change(site, lambda mask: asked.append(int(mask.sum())) or [edits[site]])

    clean, changed = losses(model, [Kept(tokens, counted)], [change(site) for site in SITES])
    plain = model.logits(tokens).double().log_softmax(-1)
    for site, found in zip(SITES, changed, strict=True):
        with model.edited(edits[site]):
            other = model.logits(tokens).double().log_softmax(-1)
        before, after, divergence = [], [], []
        for row, at in counted[site].nonzero().tolist():
            if at + 1 < tokens.ids.shape[1] and tokens.real[row, at + 1]:
                following = tokens.ids[row, at + 1]
                before.append(-plain[row, at, following].item())
                after.append(-other[row, at, following].item())
                p, q = plain[row, at], other[row, at]
                divergence.append((p.exp() * (p - q)).sum().item())
        assert clean[site].n == found.n == len(before) > 5
        assert clean[site].loss == pytest.approx(math.fsum(before) / len(before), rel=1e-5)
        assert found.loss == pytest.approx(math.fsum(after) / len(after), rel=1e-5)
        assert found.kl == pytest.approx(math.fsum(divergence) / len(divergence), rel=1e-4)
        assert found.kl > 1e-4
    assert sum(asked) == sum(int(mask.sum()) for mask in counted.values())


def test_running_sums_are_of_tokens_not_of_batches() -> None:
    sums = Losses()
    sums.add(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
    sums.add(torch.tensor([6.0]), torch.tensor([1.0]))
    assert (sums.n, sums.loss, sums.kl) == (3, 3.0, 0.5)
    sums.add(torch.tensor([3.0]))
    assert (sums.n, sums.loss, sums.kl) == (4, 3.0, 0.375)
