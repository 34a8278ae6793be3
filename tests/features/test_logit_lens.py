"""The logit lens against the slow way in float64, and against what the model does when a direction is added to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gemscope as gs
from by_hand import MAIN
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site
from gemscope.errors import InputError, Mismatch, SiteNotFound
from gemscope.features.logit_lens import LogitEffects, convention, logit_effects, no_logits
from gemscope.features.sae import SAE
from gemscope.testing import tiny_model

GEMMA = {"gemma2", "gemma3_text", "gemma3"}
LAYER_NORM = {"gpt2", "gpt_neox", "gpt_neox_sequential"}
FEATURES = 7
every_family = pytest.mark.parametrize("family", MAIN)


def kinds_of(family: str) -> list[str]:
    """Those from which something reaches the logits directly."""
    missing = {"transcoder", "transcoder_nogain", "embed"}
    missing |= (set() if family in GEMMA else {"mlp_raw"}) | ({"mid"} if family == "gpt_neox" else set())
    return [kind for kind in KINDS if kind not in missing]


def sae_at(model: LanguageModel, site: str, *, features: int = FEATURES, seed: int = 0) -> SAE:
    sae = SAE(model.width(site), features, site=site)
    sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed)))
    return sae


def all_effects(model: LanguageModel, sae: SAE, **options) -> LogitEffects:
    """Of every feature and token, sorted: one block."""
    (found,) = logit_effects(model, sae, k=10**6, **options)
    return found


def by_token(found: LogitEffects, vocabulary: int) -> Tensor:
    return torch.full((len(found.features), vocabulary), torch.nan).scatter(1, found.promoted, found.promoted_values)


# --- where things are, family by family, without site.py ------------------------------------------------------------


@dataclass
class Parts:
    final: nn.Module
    project: nn.Module
    after_attention: nn.Module | None
    after_mlp: nn.Module | None


def parts_of(model: LanguageModel, family: str, layer: int) -> Parts:
    hf = model.hf
    if family == "gpt2":
        return Parts(hf.transformer.ln_f, hf.transformer.h[layer].attn.c_proj, None, None)
    if family in LAYER_NORM:
        return Parts(hf.gpt_neox.final_layer_norm, hf.gpt_neox.layers[layer].attention.dense, None, None)
    inner = hf.model.language_model if family == "gemma3" else hf.model
    block = inner.layers[layer]
    if family in GEMMA:
        norms = block.post_attention_layernorm, block.post_feedforward_layernorm
        return Parts(inner.norm, block.self_attn.o_proj, *norms)
    return Parts(inner.norm, block.self_attn.o_proj, None, None)


def slowly(model: LanguageModel, family: str, site: str, sae: SAE) -> list[list[float]]:
    """Feature by feature, step by step, in float64; tokens that the tokenizer lacks included in no mean."""
    kind, layer = site.rpartition(".")[2], int(site.partition(".")[0]) if "." in site else 0
    parts = parts_of(model, family, layer)
    known = sorted(model.tokenizer.get_vocab().values())
    W_U = model.hf.lm_head.weight.double() if hasattr(model.hf, "lm_head") else model.hf.embed_out.weight.double()

    def gain(norm: nn.Module) -> Tensor:
        return norm.weight.double() + (1 if family in GEMMA else 0)

    out = []
    for feature in range(sae.d_sae):
        d = sae.W_dec[feature].double()
        if kind == "embed" and family in GEMMA:
            d = d * torch.tensor(32**0.5).double()
        if kind == "att":
            weight = parts.project.weight.double()
            d = weight.T @ d if family == "gpt2" else weight @ d
            d = d * gain(parts.after_attention) if parts.after_attention is not None else d
        if kind == "mlp_raw":
            d = d * gain(parts.after_mlp)
        if family in LAYER_NORM:
            d = d - d.mean()
        logits = W_U @ (d * gain(parts.final))
        out.append((logits[known] - logits[known].mean()).tolist())
    return out


@every_family
def test_effects_are_those_of_the_slow_way(family):
    model = tiny_model(family)
    known = sorted(model.tokenizer.get_vocab().values())
    for site in ("embed", *(f"1.{kind}" for kind in kinds_of(family))):
        sae = sae_at(model, site)
        found = by_token(all_effects(model, sae), model.vocab)[:, known]
        torch.testing.assert_close(
            found, torch.tensor(slowly(model, family, site, sae)).float(), atol=3e-5, rtol=1e-5, msg=site
        )


# --- against the model itself ---------------------------------------------------------------------------------------


@dataclass
class Add(Edit):
    site: Site
    direction: Tensor
    every_token = True

    def change(self, x: Tensor, read: Tensor) -> Tensor:
        return self.direction.expand_as(x)


@dataclass
class Silence(Edit):
    site: Site
    every_token = True

    def change(self, x: Tensor, read: Tensor) -> Tensor:
        return -x


def linear_logits(model: LanguageModel, family: str, edits: list) -> Tensor:
    """The last token's logits before softcapping, times the final norm's scale: that takes the norm's only
    non-linearity out, so they are linear in what the final norm reads."""
    with model.edited(*edits):
        seen = model.capture("The thing", ["2.res"], logits=True)
    x, logits = seen["2.res"].values[0, -1].double(), seen.logits[0, -1].double()
    final = parts_of(model, family, 2).final
    if cap := getattr(model.hf.config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)
    if family in LAYER_NORM:
        bias = model.hf.get_output_embeddings().weight.double() @ final.bias.double()
        return (logits - bias) * (x.var(unbiased=False) + final.eps).sqrt()
    eps = final.eps if family in GEMMA else final.variance_epsilon
    return logits * (x.square().mean() + eps).sqrt()


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in MAIN for kind in kinds_of(family)])
def test_adding_a_direction_changes_the_logits_by_its_effect(family, kind):
    model = tiny_model(family)
    site = f"2.{kind}"
    sae = sae_at(model, site, features=1)
    # Nothing answers: what comes after attention in the last block is its MLP.
    quiet = [Silence(Site(2, "mlp"))] if kind in ("att", "att_out", "mid") else []
    norm_scale = 1.0
    parts = parts_of(model, family, 2)
    if family in GEMMA and kind in ("att", "mlp_raw"):
        # A norm of its own comes first: a direction at right angles to what that reads leaves its scale the same on
        # either side.
        read = model.capture("The thing", [site])[site].values[0, -1]
        normed = parts.project(read) if kind == "att" else read
        across = parts.project.weight.T @ normed if kind == "att" else normed
        sae.W_dec.sub_((sae.W_dec @ across)[:, None] * across / across.square().sum())
        moved = normed + (parts.project(sae.W_dec[0]) if kind == "att" else sae.W_dec[0])
        norm_scale = moved.square().mean().add(1e-6).sqrt().double()
    up, down = (linear_logits(model, family, [Add(Site(2, kind), way * sae.W_dec[0]), *quiet]) for way in (1, -1))
    measured = (up - down) / 2 * norm_scale

    expected = by_token(all_effects(model, sae), model.vocab)[0].double()
    known = ~expected.isnan()
    assert known.sum() == len(model.tokenizer.get_vocab())
    assert expected[known].std() > 0.5
    torch.testing.assert_close(
        measured[known] - measured[known].mean(), expected[known], atol=1e-3, rtol=1e-3, check_dtype=False
    )


@every_family
def test_a_direction_in_the_embedding_is_scaled_as_the_model_scales_it(family):
    model = tiny_model(family)
    head = model.hf.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)  # Gemma and GPT-2 share it with the embedding
    sae = sae_at(model, "embed", features=1)
    quiet = [Silence(Site(layer, kind)) for layer in range(3) for kind in ("att_out", "mlp")]
    token = int(model.tokens("The thing").ids[0, -1])
    row = model.hf.get_input_embeddings().weight[token]
    before = row.clone()
    ways = []
    for way in (1, -1):
        row.copy_(before + way * sae.W_dec[0])
        ways.append(linear_logits(model, family, quiet))
    measured = (ways[0] - ways[1]) / 2
    expected = by_token(all_effects(model, sae), model.vocab)[0].double()
    known = ~expected.isnan()
    torch.testing.assert_close(
        measured[known] - measured[known].mean(), expected[known], atol=5e-3, rtol=1e-3, check_dtype=False
    )


# --- the lists and the histogram ------------------------------------------------------------------------------------


def test_the_lists_hold_the_strongest_tokens_and_the_histogram_all_of_them():
    model = tiny_model("llama")
    sae = sae_at(model, "1.res", features=40)
    every = by_token(all_effects(model, sae), model.vocab)
    (found,) = logit_effects(model, sae, k=5, bins=12)
    known = len(model.tokenizer.get_vocab())
    for feature in found.features:
        effects = every[feature][~every[feature].isnan()].numpy()
        assert len(effects) == known
        order = np.argsort(-effects)
        assert found.promoted[feature].tolist() == order[:5].tolist()
        assert found.suppressed[feature].tolist() == order[::-1][:5].tolist()
        np.testing.assert_array_equal(found.promoted_values[feature], effects[order[:5]])
        low, step = float(found.low[feature]), float(found.step[feature])
        assert low == effects.min()
        assert low + 12 * step == pytest.approx(effects.max(), abs=1e-5)
        expected, _ = np.histogram(effects, bins=12)
        counts = found.counts[feature].numpy()
        assert counts.sum() == known
        assert np.abs(counts - expected).sum() <= 2  # an effect may lie on an edge


def test_rows_of_the_model_that_no_token_has_are_in_no_list_mean_or_histogram():
    model = tiny_model("llama")
    known = len(model.tokenizer.get_vocab())
    assert known < model.vocab
    sae = sae_at(model, "1.res")
    before = all_effects(model, sae)
    model.hf.get_output_embeddings().weight[known:] = 1e3
    after = all_effects(model, sae)
    assert int(after.promoted.max()) == known - 1
    for name in ("promoted", "suppressed", "promoted_values", "counts", "low", "step"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert f"the model has {model.vocab - known} more rows" in convention(model, sae)


def test_blocks_of_features_together_are_the_whole():
    model = tiny_model("gpt2")
    sae = sae_at(model, "1.res", features=150)
    whole = all_effects(model, sae)
    parts = list(logit_effects(model, sae, k=10**6, block=64))
    assert [part.features for part in parts] == [range(64), range(64, 128), range(128, 150)]
    joined = torch.cat([by_token(part, model.vocab) for part in parts])
    torch.testing.assert_close(joined, by_token(whole, model.vocab), equal_nan=True, atol=1e-5, rtol=1e-5)
    assert torch.cat([part.counts for part in parts]).sum() == whole.counts.sum()


def test_a_dead_direction_has_no_effect():
    model = tiny_model("llama")
    sae = sae_at(model, "1.res")
    sae.W_dec[3] = 0
    (found,) = logit_effects(model, sae)
    assert (found.promoted_values[3] == 0).all()
    assert (found.suppressed_values[3] == 0).all()
    assert found.step[3] > 0
    assert found.counts[3].tolist() == [len(model.tokenizer.get_vocab()), *[0] * 49]
    assert all(field.isfinite().all() for field in vars(found).values() if isinstance(field, Tensor))


def test_weights_in_half_and_mapped_from_a_file_are_read_as_they_are(tmp_path: Path):
    model = tiny_model("gemma2", dtype=torch.bfloat16)
    sae = sae_at(model, "1.res")
    sae.to(torch.float16)
    gs.save_sae(sae, tmp_path / "sae")
    loaded = gs.load_sae(tmp_path / "sae", dtype=None)
    assert loaded.W_dec.dtype == torch.float16
    in_float = tiny_model("gemma2", dtype=torch.bfloat16)
    in_float.hf.float()
    found, expected = (by_token(all_effects(one, loaded), 320) for one in (model, in_float))
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-5)


def test_weights_that_accelerate_keeps_elsewhere_are_fetched():
    accelerate = pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = tiny_model("gemma2")
    sae = sae_at(model, "1.att")
    expected = by_token(all_effects(model, sae), model.vocab)
    accelerate.cpu_offload(model.hf, execution_device=torch.device("cpu"))
    assert model.hf.get_submodule("model.layers.1.self_attn.o_proj").weight.device.type == "meta"
    assert torch.equal(by_token(all_effects(model, sae), model.vocab).nan_to_num(), expected.nan_to_num())


# --- what is said and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "site", "said", "unsaid"),
    [
        (
            "llama",
            "1.res",
            ["times the final norm's gain, through"],
            ["LayerNorm", "1 + weight", "softcapping", "root"],
        ),
        ("gpt2", "1.att", ["output projection", "centred as LayerNorm does"], ["1 + weight", "softcapping"]),
        ("gemma2", "1.att", ["output projection", "gain of the norm after it", "1 + weight", "at 30"], ["LayerNorm"]),
        ("gemma3", "1.mlp_raw", ["gain of the norm after it"], ["output projection", "softcapping"]),
        ("gemma3", "embed", ["root of d_model"], ["output projection"]),
    ],
)
def test_the_convention_says_what_is_done_and_nothing_else(family, site, said, unsaid):
    model = tiny_model(family)
    words = convention(model, sae_at(model, site))
    assert "mean over the vocabulary subtracted" in words
    assert "without a division by the final norm's scale" in words
    assert f"direction at {site}" in words
    assert "\n" not in words
    for piece in said:
        assert piece in words
    for piece in unsaid:
        assert piece not in words


def test_a_transcoder_counts_where_it_writes_and_never_where_it_reads():
    model = tiny_model("gemma2")
    sae = SAE(32, FEATURES, site="1.transcoder", site_out="1.mlp")
    sae.W_dec.copy_(torch.randn(FEATURES, 32))
    assert no_logits(sae) is None
    plain = sae_at(model, "1.mlp")
    plain.W_dec.copy_(sae.W_dec)
    assert torch.equal(all_effects(model, sae).promoted_values, all_effects(model, plain).promoted_values)

    reading = sae_at(model, "1.transcoder")
    assert "1.transcoder is what the MLP reads" in str(no_logits(reading))
    with pytest.raises(SiteNotFound, match=r"no direct path to the logits: 1\.transcoder is what the MLP reads"):
        logit_effects(model, reading)


def test_what_cannot_be_computed_is_refused_at_once():
    model = tiny_model("llama")
    with pytest.raises(Mismatch, match=r"writes 16 numbers, and 1\.res of tiny-llama has 32"):
        logit_effects(model, SAE(16, 4, site="1.res"))
    with pytest.raises(InputError, match="does not say where it writes"):
        no_logits(SAE(32, 4))
    with pytest.raises(InputError, match="at least one token"):
        logit_effects(model, sae_at(model, "1.res"), k=0)
    with pytest.raises(SiteNotFound, match="no layer 9"):
        logit_effects(model, sae_at(model, "1.res"), site="9.res")
    nowhere = SAE(32, 4)
    assert [one.features for one in logit_effects(model, nowhere, site="2.res")] == [range(4)]


def test_every_kind_of_site_has_a_path_or_a_reason():
    model = tiny_model("gemma2")
    for kind in KINDS:
        site = "embed" if kind == "embed" else f"1.{kind}"
        sae = sae_at(model, site)
        if (reason := no_logits(sae)) is None:
            assert dataclasses.is_dataclass(next(logit_effects(model, sae)))
        else:
            assert reason.startswith(site)
