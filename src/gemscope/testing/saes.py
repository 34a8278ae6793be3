"""SAEs whose features are known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.features.sae import SAE, SAEInfo
from gemscope.shapes import Float

D_MODEL = 32


def identity_sae(d: int, site: Site | str = "1.res") -> SAE:
    """An SAE that gives back exactly what it reads: features i and d + i are the two signs of x[i]."""
    axes = torch.eye(d)
    sae = SAE(d, 2 * d, gate="relu", site=site, info=SAEInfo(name=f"identity-{d}"))
    sae.W_enc.copy_(torch.cat([axes, -axes], dim=1))
    sae.W_dec.copy_(torch.cat([axes, -axes]))
    return sae


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An SAE, activations made from its features, and which features these are."""

    sae: SAE
    x: Float[Tensor, "N D"]
    """What the SAE reads: `features @ sae.W_dec + sae.b_dec`, and noise where that was asked for."""
    features: Float[Tensor, "N F"]
    """The strengths that were planted, 0 where a feature is off. Without noise `sae.encode(x)` finds exactly these."""


def planted_sae(
    d_in: int = D_MODEL,
    d_sae: int = 2 * D_MODEL,
    *,
    tokens: int = 200,
    active: int = 4,
    noise: float = 0.0,
    site: Site | str = "1.res",
    seed: int = 0,
) -> Planted:
    """A JumpReLU SAE, and `tokens` activations of which `active` planted features each are on.

    Features 0 to d_in - 1 write along random orthonormal directions, the others along the opposite ones, so that up to
    2 * d_in features can be told apart exactly; opposite ones are never on together. Thresholds lie between 0.5 and 1,
    strengths between 1.5 and 4; `noise` is the standard deviation of what is added to each number of x.
    Raises InputError for a d_sae or an `active` that does not fit.
    """
    if not 0 < d_sae <= 2 * d_in:
        raise InputError(
            f"d_sae={d_sae} with d_in={d_in}: planted features are exact up to twice the width, {2 * d_in}"
        )
    if not 0 <= active <= min(d_in, d_sae):
        raise InputError(f"active={active}: between 0 and {min(d_in, d_sae)} features can be on together")
    random = torch.Generator().manual_seed(seed)
    draw, uniform = partial(torch.randn, generator=random), partial(torch.rand, generator=random)
    axes = torch.linalg.qr(draw(d_in, d_in, dtype=torch.float64)).Q.float()
    sae = SAE(d_in, d_sae, site=site, info=SAEInfo(name=f"planted-{d_in}-{d_sae}", declared_l0=float(active)))
    assert sae.threshold is not None
    sae.W_dec.copy_(torch.cat([axes, -axes])[:d_sae])
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(draw(d_in))
    sae.b_enc.copy_(-sae.b_dec @ sae.W_enc)
    sae.threshold.copy_(0.5 + 0.5 * uniform(d_sae))

    axis = uniform(tokens, min(d_in, d_sae)).argsort(dim=-1)[:, :active]
    other = axis + d_in  # the opposite direction, where the SAE has it
    chosen = torch.where((uniform(tokens, active) < 0.5) & (other < d_sae), other, axis)
    features = torch.zeros(tokens, d_sae).scatter(1, chosen, 1.5 + 2.5 * uniform(tokens, active))
    x = features @ sae.W_dec + sae.b_dec + noise * draw(tokens, d_in)
    return Planted(sae=sae, x=x, features=features)
