"""Whether model and SAE fit, and what of an activation an SAE answers for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gemscope as gs
from gemscope.errors import InputError, Mismatch
from gemscope.features.fit import answered_for, require_fit
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import tiny_model


@pytest.fixture(scope="module")
def model() -> gs.LanguageModel:
    return tiny_model()


def test_an_sae_fits_where_it_reads_and_writes_as_many_numbers_as_there_are(model: gs.LanguageModel) -> None:
    width = model.width(gs.Site.parse("1.res"))
    assert str(require_fit(model, SAE(width, 4, site="1.res"))) == "1.res"
    assert str(require_fit(model, SAE(width, 4, site="1.transcoder", site_out="1.mlp"))) == "1.transcoder"
    with pytest.raises(InputError, match="does not say where it reads"):
        require_fit(model, SAE(width, 4))
    for more in (-1, 1):
        with pytest.raises(Mismatch, match=f"reads {width + more} numbers per token, .* has {width} at 1.res$"):
            require_fit(model, SAE(width + more, 4, site="1.res"))
        made = SAEInfo(model="a/b")
        with pytest.raises(Mismatch, match=rf"writes {width + more} .* at 1.mlp \(it was made for a/b\)$"):
            require_fit(model, SAE(width, 4, width + more, site="1.transcoder", site_out="1.mlp", info=made))


def test_a_centred_sae_answers_for_what_differs_from_the_mean_over_the_width() -> None:
    generator = torch.Generator().manual_seed(0)
    x, out = (3 + torch.randn(7, 5, generator=generator) for _ in range(2))
    for sae in (SAE(5, 8), SAE(5, 8, centred=True)):
        mean = np.asarray(x, np.float64).mean(1, keepdims=True) if sae.centred else 0.0
        for told, given in zip(answered_for(sae, x, out), (x, out), strict=True):
            np.testing.assert_allclose(np.asarray(told, np.float64), np.asarray(given, np.float64) - mean, atol=1e-12)
