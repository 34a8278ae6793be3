"""What TransformerLens does to models: telling those that it wraps or has rewritten, and what its rewriting takes from
the values of attention.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from gemscope.activations import site as places
from gemscope.activations.bare import WRAPPED, bare
from gemscope.activations.families import Point
from gemscope.activations.hooks import Enough, reading, replacing
from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.shapes import Float

_ROUNDING = 1e-3
"""Of the largest number: what centring in half precision may leave of a mean, and far from what others have."""


def is_bridge(given: object) -> bool:
    """Whether it is one of its bridges to a model of transformers', which is its `original_model`."""
    return _is_of_its_own(given) and isinstance(getattr(given, "original_model", None), nn.Module)


def is_hooked(given: object) -> bool:
    """Whether it is one of its HookedTransformers, which have no model of transformers inside."""
    return _is_of_its_own(given) and any(kind.__name__ == "HookedTransformer" for kind in type(given).__mro__)


def _is_of_its_own(given: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "transformer_lens" for kind in type(given).__mro__)


def require_as_it_was(hf: nn.Module) -> None:
    """Raises InputError for one of TransformerLens's own models, for a transformers model whose weights it has
    rewritten, and for a family that is not known here. A model that a bridge of its merely looks at is what it was.
    """
    if _is_of_its_own(hf):
        raise InputError(
            f"a {type(hf).__name__} of TransformerLens given: give the transformers model, such as the bridge's "
            "original_model (before enable_compatibility_mode) or what gs.load_model loads"
        )
    blocks = list(places.blocks(hf))
    if any(WRAPPED in block._modules for block in blocks) and _is_rewritten(hf, blocks):
        raise InputError(
            "TransformerLens has rewritten this model's weights (enable_compatibility_mode, process_weights), so that "
            "its sites hold other numbers: load it anew, as in gs.load_model(...)"
        )


def _is_rewritten(hf: nn.Module, blocks: list[nn.Module]) -> bool:
    """Compatibility mode marks what it goes through. `process_weights` alone leaves no mark, but gains of exactly 1 in
    the last norm, which it folds into the weights behind, and embeddings without a mean over the width.
    """
    if any(vars(block).get("compatibility_mode") for block in blocks):
        return True
    gain = 0.0 if places.family_of(hf).one_plus else 1.0
    if next(hf.get_submodule(places.final_norm(hf)).parameters()).eq(gain).all():
        return True
    embedding = hf.get_submodule(places.locate(hf, Site(None, "embed")).module)
    rows = next(embedding.parameters())[:64].float()
    return bool(rows.mean(-1).abs().max() < _ROUNDING * rows.abs().max())


def has_layer_norm(hf: nn.Module) -> bool:
    """Whether its norms take the mean over the width away."""
    return isinstance(bare(hf.get_submodule(places.final_norm(hf))), nn.LayerNorm)


@torch.no_grad()
def value_bias(hf: nn.Module, layer: int, *, norm_folded: bool) -> Float[Tensor, "D"]:
    """What every token's values have in common at `layer`.att, whatever is read: the value biases, and with
    `norm_folded` what the bias of the norm before them becomes. A token's attention weights add up to 1, so this is in
    all that the heads write; `fold_value_biases` takes it out.

    Read off one token: attention given zeros writes its value biases, a block given zeros norms them to a bias.
    """
    site = Site(layer, "att")
    point = places.locate(hf, site)
    attention = point.module.rpartition(".")[0]
    start = Point(attention.rpartition(".")[0] if norm_folded else attention, "input")
    device = next(hf.parameters()).device
    with replacing(hf, {start: torch.zeros_like}), reading(hf, {site: point}, stop=True) as seen, suppress(Enough):
        hf(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
    return seen[site][0, 0].float()
