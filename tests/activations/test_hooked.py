"""TransformerLens's HookedTransformer by its hook points. TransformerLens is too heavy for these tests: a stand-in has the
modules, names and shapes of version 3's GPT-2, with the weights of a tiny one of transformers, which is the truth here.
`peer/inside/test_models.py` has the real one, of five families.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemscope as gs
from by_hand import TEXT, hooks, random_sae
from gemscope.activations.direct import DirectPath
from gemscope.errors import InputError, SiteNotFound
from gemscope.testing import tiny_model

SITES = ["embed", *(f"{layer}.{kind}" for layer in (0, 2) for kind in ("att", "att_out", "mid", "transcoder", "transcoder_nogain", "mlp", "res"))]  # fmt: skip


def of_theirs(kind: type) -> type:
    """As if the class came of TransformerLens."""
    kind.__module__ = (
        "transformer_lens.HookedTransformer" if kind.__name__.startswith("Hooked") else "transformer_lens.components"
    )
    return kind


@of_theirs
class HookPoint(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@of_theirs
class LayerNorm(nn.Module):
    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.w, self.b, self.eps, self.length = norm.weight, norm.bias, norm.eps, len(norm.weight)
        self.hook_normalized = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.hook_normalized(x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()) * self.w + self.b


@of_theirs
class LayerNormPre(LayerNorm):
    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm)
        del self.w, self.b

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.hook_normalized(x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())


@of_theirs
class Attention(nn.Module):
    def __init__(self, attn: Any, heads: int) -> None:
        super().__init__()
        width = attn.c_proj.weight.shape[1]
        parts = attn.c_attn.weight.split(attn.c_attn.weight.shape[1] // 3, dim=1)
        biases = attn.c_attn.bias.split(len(attn.c_attn.bias) // 3)
        for name, weight, bias in zip("QKV", parts, biases, strict=True):
            setattr(
                self, f"W_{name}", nn.Parameter(weight.reshape(width, heads, -1).transpose(0, 1), requires_grad=False)
            )
            setattr(self, f"b_{name}", nn.Parameter(bias.reshape(heads, -1), requires_grad=False))
        self.W_O = nn.Parameter(attn.c_proj.weight.reshape(heads, -1, width), requires_grad=False)
        self.b_O = attn.c_proj.bias
        self.hook_z = HookPoint()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("btd,hdk->bhtk", x, getattr(self, f"W_{n}")) + getattr(self, f"b_{n}")[:, None] for n in "QKV"
        )
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & mask[:, None, None].bool()
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        return torch.einsum("bthk,hkd->btd", self.hook_z((pattern @ v).transpose(1, 2)), self.W_O) + self.b_O


class Block(nn.Module):
    def __init__(self, block: Any, heads: int, norm: type) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn, self.mlp = (
            LayerNorm(block.ln_1),
            norm(block.ln_2),
            Attention(block.attn, heads),
            block.mlp,
        )
        for name in ("attn_out", "resid_mid", "mlp_out", "resid_post"):
            self.add_module(f"hook_{name}", HookPoint())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.ln1(x), mask)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


@of_theirs
class Embed(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.W_E = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.W_E[ids]


@of_theirs
class Unembed(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.W_U = nn.Parameter(weight.T.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U


@of_theirs
class HookedTransformer(nn.Module):
    def __init__(self, hf: Any, norm: type = LayerNorm) -> None:
        super().__init__()
        inside, config = hf.transformer, hf.config
        self.cfg = SimpleNamespace(
            n_layers=config.n_layer, d_model=config.n_embd, n_heads=config.n_head, d_head=config.n_embd // config.n_head,
            d_vocab=config.vocab_size, n_ctx=config.n_positions, normalization_type="LN", attn_only=False,
            parallel_attn_mlp=False, original_architecture="GPT2LMHeadModel", tokenizer_name=None, model_name="gpt2",
        )  # fmt: skip
        self.embed, self.pos, self.hook_embed = Embed(inside.wte.weight), inside.wpe, HookPoint()
        self.blocks = nn.ModuleList(Block(block, config.n_head, norm) for block in inside.h)
        self.ln_final, self.unembed = LayerNorm(inside.ln_f), Unembed(hf.lm_head.weight)

    def forward(self, ids: Tensor, attention_mask: Tensor, past_kv_cache: Any = None) -> Tensor:
        assert past_kv_cache is None
        x = self.hook_embed(self.embed(ids)) + self.pos((attention_mask.cumsum(-1) - 1).clamp(min=0))
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.unembed(self.ln_final(x))


def both(**options: Any) -> tuple[gs.LanguageModel, gs.LanguageModel]:
    plain = tiny_model("gpt2")
    return gs.load_model(HookedTransformer(plain.hf, **options), tokenizer=plain.tokenizer), tiny_model("gpt2")


def test_it_has_the_sites_of_the_model_that_it_was_made_of() -> None:
    ours, plain = both()
    texts = [TEXT, "it was"]
    found, expected = (one.capture(texts, SITES, logits=True) for one in (ours, plain))
    real = plain.tokens(texts).real
    for site in SITES:
        assert torch.equal(found[site].counted, expected[site].counted)
        torch.testing.assert_close(found[site].values[real], expected[site].values[real], atol=2e-5, rtol=1e-4)
        assert ours.width(site) == plain.width(site)
    torch.testing.assert_close(found.logits[real], expected.logits[real], atol=2e-5, rtol=1e-4)
    assert (ours.n_layers, ours.vocab, ours.context) == (plain.n_layers, plain.vocab, plain.context)
    assert ours.name == "gpt2"


def test_edits_act_and_words_are_written_as_in_the_plain_one() -> None:
    ours, plain = both()
    edits = gs.Steer(random_sae(plain), 3, 4.0), gs.Splice(random_sae(plain, "1.att", seed=1), error=False)
    logits, written = [], []
    for one in (ours, plain):
        with one.edited(*edits):
            logits.append(one.logits(TEXT))
            written.append(one.generate(TEXT, max_new_tokens=4, cache=False))
    torch.testing.assert_close(*logits, atol=5e-5, rtol=1e-4)
    assert not torch.allclose(logits[0], plain.logits(TEXT), atol=1e-2)
    assert written[0] == written[1]
    assert hooks(ours) == 0


@pytest.mark.parametrize("site", ["0.att", "1.res", "1.mlp"])
def test_the_way_to_the_logits_is_the_plain_one_s(site: str) -> None:
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for one in both():
        path = DirectPath(one, gs.Site.parse(site))
        with path.unembedding() as matrix:
            found.append(path.carried(directions) @ matrix.float().T)
        assert "centred as LayerNorm does" in path.words
        gradients.append(one.gradient(TEXT, site, lambda logits: logits[0, -1, 7])[1])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_what_processing_moves_is_missing_by_name_or_refused() -> None:
    ours, plain = both(norm=LayerNormPre)
    with pytest.raises(SiteNotFound, match=r"no site '1\.transcoder': TransformerLens has folded the gain.*fold_ln"):
        ours.capture(TEXT, ["1.transcoder"])
    theirs = HookedTransformer(plain.hf)
    for block in theirs.blocks:
        block.attn.b_V.zero_()
    with pytest.raises(SiteNotFound, match=r"no site '1\.att': .*fold_value_biases"):
        gs.load_model(theirs, tokenizer=plain.tokenizer).capture(TEXT, ["1.att"])
    theirs = HookedTransformer(plain.hf)
    model = gs.load_model(theirs, tokenizer=plain.tokenizer)
    theirs.embed.W_E -= theirs.embed.W_E.mean(-1, keepdim=True)
    for read in (lambda: gs.load_model(theirs, tokenizer=plain.tokenizer), lambda: model.logits(TEXT)):
        with pytest.raises(
            InputError, match=r"center_writing_weights\): load it with HookedTransformer\.from_pretr"
        ) as raised:
            read()
        assert "\n" not in str(raised.value)
