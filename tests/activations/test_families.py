"""The model families that are variations on others: every site against the whole model done by hand, from its weights
alone and in float64. What all families have in common is tried at length on those of `by_hand.MAIN`.

By hand, a text is one token long: there the softmax is one, so the heads write the value vectors, whatever the
positions (gpt_oss alone gives part of its attention to a number of its own).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from anatomy import (
    ANATOMY,
    LAYERS,
    OTHERS,
    TOKEN,
    by_hand,
    close,
    editable,
    kinds_of,
    layer_norm,
    model_of,
    seen_by_hand,
    with_added,
)
from by_hand import MAIN, TEXT, hooks
from gemscope.activations.direct import DirectPath
from gemscope.activations.editing import Edit
from gemscope.activations.families import FAMILIES, family
from gemscope.activations.load import load_model
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site, locate
from gemscope.errors import InputError, SiteNotFound
from gemscope.testing import TINY, tiny_model

every_other = pytest.mark.parametrize("family", OTHERS)


@dataclass
class Add(Edit):
    site: Site
    delta: Tensor
    every_token = True

    def change(self, x: Tensor, read: Tensor) -> Tensor:
        return self.delta.float().expand_as(x)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_family_of_the_table_is_tried_and_told_of() -> None:
    assert set(ANATOMY) >= set(OTHERS) == {family for family in ANATOMY if hasattr(transformers, TINY[family].model)}
    tried = {model_of(family).hf.config.model_type for family in (*MAIN, *OTHERS)}
    with_pictures = {"qwen3_5", "qwen3_5_moe"}  # transformers loads the text model of those
    assert tried == {kind for kind in FAMILIES if kind in CONFIG_MAPPING_NAMES} - with_pictures
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert {kind for kind in FAMILIES if f"`{kind}`" in page} == set(FAMILIES)


@every_other
def test_every_site_is_that_of_the_model_done_by_hand(family: str) -> None:
    model = model_of(family)
    expected, logits = seen_by_hand(family)
    captured = model.capture(torch.tensor([[TOKEN]]), expected, logits=True)
    for site, value in expected.items():
        close(captured[site].values, value)
        assert model.width(site) == value.shape[-1]
        assert value.abs().mean() > 0.05, f"{site} is too small to tell anything"
    close(captured.logits, logits)


@every_other
def test_a_kind_that_is_not_there_is_refused_in_one_line(family: str) -> None:
    for kind in set(KINDS) - {"embed", *kinds_of(family)}:
        with pytest.raises(SiteNotFound, match=f"no site '1.{kind}'") as raised:
            locate(model_of(family).hf, Site(1, kind))
        assert "\n" not in str(raised.value)
        if kind == "mid":
            assert "side by side" in str(raised.value)


@every_other
def test_the_residual_stream_is_the_model_s_own_and_the_sum_of_what_is_added(family: str) -> None:
    model = model_of(family)
    kinds = [kind for kind in kinds_of(family) if kind in ("att_out", "mid", "mlp", "res")]
    at = model.capture(TEXT, ["embed", *(f"{layer}.{kind}" for layer in range(LAYERS) for kind in kinds)])
    tokens = model.tokens(TEXT)
    with torch.no_grad():
        hidden = model.hf(input_ids=tokens.ids, output_hidden_states=True).hidden_states
    rows = model.hf.get_input_embeddings().weight[tokens.ids]
    assert torch.equal(at["embed"].values, rows)
    if family not in ("opt", "bloom"):  # positions, a norm
        close(hidden[0], ANATOMY[family].embed_scale * rows)
    for layer in range(LAYERS):
        res = at[f"{layer}.res"].values
        if layer < LAYERS - 1:
            assert torch.equal(res, hidden[layer + 1])
        else:
            close(model.hf.get_submodule(ANATOMY[family].final)(res), hidden[-1])
        added = [at[f"{layer}.{kind}"].values for kind in ("att_out", "mlp")]
        close(hidden[layer] + sum(added), res)
        if "mid" in kinds:
            close(hidden[layer] + added[0], at[f"{layer}.mid"].values)


@every_other
def test_a_padded_row_is_read_as_it_is_alone(family: str) -> None:
    model = model_of(family)
    sites = [f"1.{kind}" for kind in kinds_of(family)]
    texts = (TEXT, "The other")
    alone = [model.capture(text, sites, logits=True) for text in texts]
    for side in ("left", "right"):
        together = model.tokens(texts, side=side)
        found = model.capture(together, sites, logits=True)
        for row, (one, real) in enumerate(zip(alone, together.real, strict=True)):
            for site in sites:
                close(found[site].values[row][real], one[site].values[0])
            close(found.logits[row][real], one.logits[0])


@every_other
def test_the_same_is_written_with_the_cache_and_without(family: str) -> None:
    texts, model = [TEXT, "The other"], model_of(family)
    with_cache, without = (model.generate(texts, max_new_tokens=6, cache=cache) for cache in (True, False))
    assert with_cache == without


@every_other
def test_a_model_of_the_family_loads_from_a_folder(family: str, tmp_path) -> None:
    model = model_of(family)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.n_layers, loaded.d_model, loaded.context) == (LAYERS, 32, 2048 if family == "bloom" else 128)
    assert torch.equal(loaded.capture(TEXT, ["2.res"])["2.res"].values, model.capture(TEXT, ["2.res"])["2.res"].values)


@pytest.mark.skipif("qwen3_5_text" not in OTHERS, reason="this transformers does not have Qwen 3.5")
def test_of_a_model_that_sees_pictures_the_text_model_is_loaded(tmp_path) -> None:
    known = model_of("qwen3_5_text")
    sizes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(text_config=known.hf.config.to_dict(), vision_config=sizes)
    whole = transformers.Qwen3_5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    known.tokenizer.save_pretrained(tmp_path)
    model, ids = load_model(tmp_path, dtype="float32"), known.tokens(TEXT).ids
    with torch.no_grad():
        expected = whole(input_ids=ids, output_hidden_states=True)
    found = model.capture(ids, ["1.res"], logits=True)
    close(found["1.res"].values, expected.hidden_states[2])
    close(found.logits, expected.logits)
    with pytest.raises(InputError, match="those are the text models alone"):
        LanguageModel(whole, known.tokenizer, name="whole")


# --- changing --------------------------------------------------------------------------------------------------------


@every_other
def test_an_edit_at_each_site_is_the_one_done_by_hand(family: str) -> None:
    model, ids = model_of(family), torch.tensor([[TOKEN]])
    before, hooked = model.logits(ids), hooks(model)  # transformers 5 leaves some of its own
    generator = torch.Generator().manual_seed(1)
    for site in [f"{layer}.{kind}" for layer in (0, 2) for kind in editable(family)]:
        delta = torch.randn(model.width(site), generator=generator)
        with model.edited(Add(Site.parse(site), delta)):
            changed = model.logits(ids)
        close(changed, with_added(family, site, delta.double()), atol=1e-4)
        assert (changed - before).abs().max() > 0.05, f"an edit at {site} is too weak to tell anything"
    assert torch.equal(model.logits(ids), before)
    assert hooks(model) == hooked


@every_other
def test_what_an_edit_leaves_alone_keeps_its_bits(family: str) -> None:
    model = model_of(family)
    tokens = model.tokens(TEXT)
    last = tokens.ids.shape[1] - 1
    before = model.capture(tokens, [f"1.{kind}" for kind in editable(family)])
    for kind in editable(family):
        site = Site(1, kind)
        edit = Add(site, torch.ones(model.width(site)))
        edit.at = (last,)
        with model.edited(edit):
            after = model.capture(tokens, [site, "1.res"])
        assert torch.equal(after[site].values[:, :last], before[site].values[:, :last]), kind
        close(after[site].values[:, last], before[site].values[:, last] + 1)
        # A mixture multiplies the tokens of an expert together, so that another's choice shows in the last bit.
        close(after["1.res"].values[:, :last], before["1.res"].values[:, :last], atol=2e-6)
        assert (after["1.res"].values - before["1.res"].values)[:, last].abs().max() > 0.05


@every_other
def test_the_gradient_at_each_site_is_that_of_the_model_done_by_hand(family: str) -> None:
    model, ids = model_of(family), torch.tensor([[TOKEN]])
    number = torch.randn(model.vocab, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at_hand = seen_by_hand(family)[0]
    for kind in editable(family):
        site = f"1.{kind}"
        acts, gradient = model.gradient(ids, site, lambda logits: (logits[0, 0] * number.float()).sum())
        close(acts.values, at_hand[site])
        way = torch.randn(model.width(site), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1e-6
        up, down = (with_added(family, site, sign * way)[0, 0] @ number for sign in (1, -1))
        close(gradient[0, 0].double() @ way / 1e-6, (up - down) / 2e-6, atol=1e-3, rtol=1e-3)


def test_what_a_model_multiplies_is_read_and_changed_as_it_rounds_it_in_half_precision() -> None:
    model = tiny_model("granite", dtype=torch.bfloat16)
    module = model.hf.model.layers[1].mlp
    given: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: given.append(output))
    sites = ["1.mid", "1.mlp", "1.res"]
    at = {site: acts.values for site, acts in model.capture(TEXT, [Site.parse(site) for site in sites]).items()}
    handle.remove()
    mid, mlp, res = (at[Site.parse(site)] for site in sites)
    assert torch.equal(mlp, given[-1] * 0.7)
    assert torch.equal(mid + mlp, res)
    edit = Add(Site(1, "mlp"), torch.full((32,), 0.5))
    edit.at = (3,)
    with model.edited(edit):
        changed = model.capture(TEXT, sites)
    close(changed["1.mlp"].values[:, 3].float(), mlp[:, 3].float() + 0.5, atol=0.02, rtol=0.01)
    for site in sites:
        assert torch.equal(changed[site].values[:, :3], at[Site.parse(site)][:, :3])


# --- the direct path to the logits -----------------------------------------------------------------------------------


@every_other
def test_the_direct_path_is_what_reaches_the_logits_when_nothing_answers(family: str) -> None:
    """With the final norm's scale taken out, the logits are linear in what it reads."""
    a, model = ANATOMY[family], model_of(family)
    final = model.hf.get_submodule(a.final)
    generator = torch.Generator().manual_seed(4)

    def linear_logits(site: str, delta: Tensor) -> Tensor:
        stream: dict[str, Tensor] = {}

        def see(at: str, value: Tensor) -> Tensor:
            answers = (".att_out", ".mlp") if site == "embed" else ("2.mlp",)
            quiet = at != site and at.endswith(answers)
            stream[at] = torch.zeros_like(value) if quiet else value + delta if at == site else value
            return stream[at]

        logits = by_hand(family, see)[0, 0]
        if model.hf.lm_head.bias is not None:
            logits = logits - model.hf.lm_head.bias.double()
        x = stream["2.res"][0, 0]
        if a.norm is layer_norm:
            shift = model.hf.lm_head.weight.double() @ final.bias.double()
            return (logits - shift) * (x.var(correction=0) + 1e-5).sqrt()
        eps = getattr(a.norm, "keywords", {}).get("eps", 1e-6)
        return logits * (x.square().mean() + eps).sqrt()

    through_a_norm = {"olmo2": ("2.att", "2.mlp_raw"), "bloom": ("embed",)}.get(family, ())
    for site in ("embed", *(f"2.{kind}" for kind in ("att", "att_out", "mid", "mlp_raw", "mlp", "res"))):
        if site.partition(".")[2] not in ("", *kinds_of(family)):
            continue
        path = DirectPath(model, Site.parse(site))
        direction = torch.randn(model.width(site), generator=generator, dtype=torch.float64)
        with path.unembedding() as W_U:
            found = path.carried(direction[None].float())[0] @ W_U.T
        if site in through_a_norm:  # that norm counts as its gain alone
            expected = W_U.double() @ carried_through_a_norm(family, site, direction)
        else:
            up, down = (linear_logits(site, way * direction) for way in (1, -1))
            expected = (up - down) / 2
        close(found - found.mean(), expected - expected.mean(), atol=2e-4, rtol=1e-4)
        assert expected.std() > 0.2 / a.logit_divisor


def carried_through_a_norm(family: str, site: str, direction: Tensor) -> Tensor:
    hf = model_of(family).hf
    if family == "bloom":
        for norm in (hf.transformer.word_embeddings_layernorm, hf.transformer.ln_f):
            direction = (direction - direction.mean()) * norm.weight.double()
        return direction
    block = hf.model.layers[2]
    if site == "2.att":
        direction = F.linear(direction, block.self_attn.o_proj.weight.double())
        return direction * block.post_attention_layernorm.weight.double() * hf.model.norm.weight.double()
    return direction * block.post_feedforward_layernorm.weight.double() * hf.model.norm.weight.double()


# --- what stays out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("opt", {"do_layer_norm_before": False}, "this opt model is not built as those known here: those put their"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim equal to hidden_size"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("bloom", {"slow_but_exact": True}, "slow_but_exact false"),
    ],
)
def test_a_model_of_the_family_that_is_built_otherwise_is_refused_with_the_reason(family, options, says) -> None:
    known = model_of(family)
    config = type(known.hf.config)(**(known.hf.config.to_dict() | options))
    with pytest.raises(InputError) as raised:
        LanguageModel(type(known.hf)(config), known.tokenizer, name="otherwise")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [("mamba", "kinds of site of its own"), ("t5", "sites in two stacks"), ("cohere", "a case of its own is needed")],
)
def test_a_family_that_is_not_known_is_refused_with_what_it_would_need(kind, needs) -> None:
    says = rf"models of type '{kind}' are not known here: .*{needs}; known are bloom, falcon, gemma, gemma2, .*, starcoder2"
    with pytest.raises(InputError) as raised:
        family(kind)
    assert re.fullmatch(says, str(raised.value))
