"""TransformerLens's HookedTransformer, which has weights and modules of its own and no model of transformers inside, as
one of those looks from outside: the same sites by its hook points, the same call. Nothing of it is copied or changed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gemscope.activations.families import Family, Point
from gemscope.errors import InputError
from gemscope.shapes import Int

_BLOCKS = "theirs.blocks"
_ROUNDING = 1e-3
"""Of the largest number: what centring in half precision may leave of a mean."""


class Hooked(nn.Module):
    """A HookedTransformer (`theirs`) behind the call of transformers' models."""

    def __init__(self, theirs: Any) -> None:
        """Raises InputError for one whose sites hold other numbers than those of the model that it was made of."""
        super().__init__()
        self.theirs = theirs
        _require_as_it_was(theirs)
        self.family = _family(theirs)
        cfg = theirs.cfg
        cap = getattr(cfg, "output_logits_soft_cap", None)
        self.config = SimpleNamespace(
            model_type="HookedTransformer",
            hidden_size=cfg.d_model,
            vocab_size=cfg.d_vocab,
            max_position_embeddings=cfg.n_ctx,
            final_logit_softcapping=cap if cap and cap > 0 else None,
            _name_or_path=cfg.tokenizer_name or cfg.model_name,
        )

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> SimpleNamespace:
        """Its `logits`, and `past_key_values` where a cache is used."""
        _require_as_it_was(self.theirs)
        if use_cache and past_key_values is None:
            past_key_values = Cache(self.theirs.cfg, input_ids)
        # Said in any case: left to itself it takes every EOS for padding.
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        entries = None if past_key_values is None else past_key_values.entries
        logits: Tensor = self.theirs(input_ids, attention_mask=mask, past_kv_cache=entries)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], past_key_values=past_key_values)

    def get_output_embeddings(self) -> nn.Module:
        """Its unembedding."""
        unembed: nn.Module = self.theirs.unembed
        return unembed

    def get_input_embeddings(self) -> SimpleNamespace:
        """Its embedding's weight."""
        return SimpleNamespace(weight=self.theirs.embed.W_E)


class Cache:
    """TransformerLens's cache of keys and values, as transformers asks for its length."""

    def __init__(self, cfg: Any, ids: Int[Tensor, "B T"]) -> None:
        """Empty, for so many rows."""
        import transformer_lens  # whose model it is for

        kind = getattr(transformer_lens, "TransformerLensKeyValueCache", None)
        kind = kind or transformer_lens.HookedTransformerKeyValueCache  # what versions before 3 call it
        self.entries = kind.init_cache(cfg, ids.device, len(ids))

    def get_seq_length(self) -> int:
        """How many tokens it holds."""
        return int(self.entries[0].past_keys.shape[1])


def _family(theirs: nn.Module) -> Family:
    """Where its kinds of site lie, as far as it has them."""
    cfg: Any = theirs.cfg
    first = theirs.get_submodule("blocks.0")
    behind = bool(getattr(cfg, "use_normalization_before_and_after", False))
    after = "Olmo2" in str(cfg.original_architecture) or "Olmo3" in str(cfg.original_architecture)
    points = {
        "att": Point("attn.hook_z", "output", heads=True),
        "att_out": Point("hook_attn_out", "output"),
        "mid": Point("hook_resid_mid", "output"),
        "transcoder": Point("ln2", "output"),
        "transcoder_nogain": Point("ln2.hook_normalized", "output"),
        "mlp_raw": Point("mlp", "output"),
        "mlp": Point("hook_mlp_out", "output"),
        "res": Point("hook_resid_post", "output"),
    }
    absent: dict[str, str] = {}
    if cfg.attn_only:
        absent |= dict.fromkeys(("mid", "transcoder", "transcoder_nogain", "mlp_raw", "mlp"), "this model has no MLP")
    elif cfg.parallel_attn_mlp:
        absent["mid"] = "this model computes attention and MLP side by side, with nothing between"
    if after:
        told = "no norm lies before this model's MLP, which reads the stream itself: mid"
        absent |= dict.fromkeys(("transcoder", "transcoder_nogain"), told)
    elif not cfg.attn_only and "w" not in first.get_submodule("ln2")._parameters:
        absent["transcoder"] = "TransformerLens has folded the gain of that norm into the weights behind it (fold_ln)"
    if not (behind or after):
        absent.setdefault("mlp_raw", "no norm lies behind this model's MLP: mlp")
    if _values_are_folded(theirs):
        absent["att"] = (
            "TransformerLens has folded the biases of its values into the output's (fold_value_biases), so that the "
            "heads write other numbers"
        )
    gemma = "Gemma" in str(cfg.original_architecture)
    norm = {"att": ("ln1_post",), "mlp_raw": ("ln2_post",)} if behind else {}
    norm = {"att": ("ln1",), "mlp_raw": ("ln2",)} if after else norm
    return Family(
        layers=(_BLOCKS,),
        embed=("theirs.embed",),
        rows_scale=cfg.d_model**0.5 if gemma else 1.0,
        after_embed=("theirs.embed.ln",) if getattr(cfg, "post_embedding_ln", False) else (),
        points={kind: point for kind, point in points.items() if kind not in absent},
        onward={
            "att_out": (),
            "mid": (),
            "mlp": (),
            "res": (),
            "att": ("attn", *norm.get("att", ())),
            "mlp_raw": norm.get("mlp_raw", ()),
        },
        final_norm=("theirs.ln_final",),
        att_width=cfg.n_heads * cfg.d_head,
        absent=absent,
        embed_scale=(lambda config: float(config.hidden_size**0.5)) if gemma else None,
    )


def _require_as_it_was(theirs: nn.Module) -> None:
    """Raises InputError where its residual stream holds other numbers than the model's, or an SAE's."""
    cfg: Any = theirs.cfg
    if getattr(theirs, "acts_to_saes", None):
        raise InputError("SAEs stand in this HookedSAETransformer, so that its sites hold theirs: call reset_saes()")
    rows = theirs.get_submodule("embed").W_E[:64].float()  # type: ignore[index]
    centred = bool(rows.mean(-1).abs().max() < _ROUNDING * rows.abs().max())
    if centred and str(cfg.normalization_type).startswith("LN"):
        raise InputError(
            "TransformerLens has taken the mean out of all that this model writes (center_writing_weights): load it "
            "with HookedTransformer.from_pretrained_no_processing(...)"
        )


def _values_are_folded(theirs: nn.Module) -> bool:
    """Whether its values have no biases and its queries or keys have: nobody trains that."""

    def has(name: str) -> bool:
        return any(bool(getattr(block.attn, name).any()) for block in theirs.get_submodule("blocks").children())

    return not has("b_V") and (has("b_Q") or has("b_K"))


def as_torch(module: nn.Module) -> nn.Module | None:
    """One of TransformerLens's modules as torch's own that does the same with the same weights: its norms, embedding
    and unembedding, and of its attention the output projection. None for any other module.
    """
    kind = type(module)
    if not kind.__module__.startswith("transformer_lens.components"):
        return None
    held = module._parameters
    if kind.__name__.startswith(("LayerNorm", "RMSNorm")):
        size = int(getattr(module, "length", None) or module.cfg.d_model)  # type: ignore[arg-type,union-attr]
        torchs = nn.LayerNorm if kind.__name__.startswith("LayerNorm") else nn.RMSNorm
        norm = torchs(size, eps=float(module.eps), elementwise_affine=False)  # type: ignore[arg-type]
        norm.weight = held.get("w")  # type: ignore[assignment]
        return norm
    matrix = next((held[name] for name in ("W_E", "W_U", "W_O") if held.get(name) is not None), None)
    if matrix is None:
        return None
    linear = nn.Linear(1, 1, bias=False, device="meta")
    weight = matrix.detach() if "W_E" in held else matrix.detach().flatten(0, -2).T
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
