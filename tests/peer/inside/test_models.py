"""Models in the hands of nnsight and TransformerLens: the same sites with the same tensors as the plain model's, the same
words written under edits, the same way to the logits; and what those libraries' own hooks see there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gemscope as gs
from by_hand import TEXT, hooks, random_sae
from gemscope.activations.direct import DirectPath
from gemscope.errors import InputError, SiteNotFound
from gemscope.testing import tiny_model
from peer.inside.hooked import hooked_of, loaded, tokenizer

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "qwen2"]
KINDS = ("att", "att_out", "mid", "transcoder", "transcoder_nogain", "mlp_raw", "mlp", "res")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        model = tiny_model(family)
        model.hf.set_attn_implementation("eager")  # what the bridge has; another kernel rounds otherwise
        model.hf.save_pretrained(folder / family)
        model.tokenizer.save_pretrained(folder / family)
    return folder


def plain(folder: Path) -> gs.LanguageModel:
    return gs.load_model(folder, attn_implementation="eager")


def sites(family: str) -> list[str]:
    missing = (set() if family == "gemma2" else {"mlp_raw"}) | ({"mid"} if family == "gpt_neox" else set())
    return ["embed", *(f"{layer}.{kind}" for layer in (0, 2) for kind in KINDS if kind not in missing)]


def assert_same(ours: gs.LanguageModel, theirs: gs.LanguageModel, family: str, *, without: str = "-") -> None:
    """Of two texts, one padded."""
    texts = [TEXT, "it was"]
    assert torch.equal(ours.tokens(texts).ids, theirs.tokens(texts).ids)
    wanted = [site for site in sites(family) if not site.endswith(without)]
    found, expected = (one.capture(texts, wanted, logits=True) for one in (ours, theirs))
    real = ours.tokens(texts).real
    for site in wanted:
        assert torch.equal(found[site].counted, expected[site].counted)
        torch.testing.assert_close(found[site].values[real], expected[site].values[real], atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(found.logits[real], expected.logits[real], atol=3e-5, rtol=1e-4)
    assert [ours.width(site) for site in wanted] == [theirs.width(site) for site in wanted]


def assert_edited_alike(ours: gs.LanguageModel, theirs: gs.LanguageModel) -> None:
    sae, heads = random_sae(theirs), random_sae(theirs, "1.att", seed=1)
    edits = (gs.Steer(sae, 3, 4.0), gs.Splice(heads, error=False))
    before = ours.logits(TEXT)
    written, logits = [], []
    for one in (ours, theirs):
        with one.edited(*edits):
            logits.append(one.logits(TEXT))
            written.append(one.generate([TEXT, "it was"], max_new_tokens=5))
    torch.testing.assert_close(*logits, atol=5e-5, rtol=1e-4)
    assert not torch.allclose(logits[0], before, atol=1e-2)
    assert written[0] == written[1]
    assert torch.equal(ours.logits(TEXT), before)


def assert_same_way_to_the_logits(ours: gs.LanguageModel, theirs: gs.LanguageModel) -> None:
    for site in ("0.att", "1.res", "1.mlp"):
        directions = torch.randn(3, theirs.width(site), generator=torch.Generator().manual_seed(0))
        found = []
        for one in (ours, theirs):
            path = DirectPath(one, gs.Site.parse(site))
            with path.unembedding() as matrix:
                found.append(path.carried(directions) @ matrix.float().T)
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
        gradients = [one.gradient(TEXT, site, lambda logits: logits[0, -1, 7])[1] for one in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


# --- nnsight --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["LanguageModel", "TransformersModel", "NNsight"])
def test_a_model_of_nnsight_s_is_the_one_inside(saved: Path, family: str, kind: str) -> None:
    import nnsight

    hf = loaded(saved / family)
    made = getattr(nnsight, kind)
    theirs = made(hf) if kind == "NNsight" else made(hf, tokenizer=tokenizer(saved / family))
    model = gs.load_model(theirs)
    assert model.hf is hf
    assert model.name == str(saved / family)
    assert_same(model, plain(saved / family), family)
    assert_edited_alike(model, plain(saved / family))
    assert hooks(model) == hooks(gs.load_model(hf))


def test_what_nnsight_sees_in_a_trace_is_what_stands_there_behind_an_edit(saved: Path) -> None:
    import nnsight

    theirs = nnsight.LanguageModel(loaded(saved / "llama"), tokenizer=tokenizer(saved / "llama"))
    model = gs.load_model(theirs)
    ids = model.tokens(TEXT).ids
    # Below the middle attention sinks are told in a pass of their own, which nnsight would take for the one that it
    # waits for, unless every token is meant or the text has been read before.
    early = gs.Steer(random_sae(model, "0.res"), 3, 4.0)
    everywhere = gs.Steer(random_sae(model, "0.res"), 3, 4.0, every_token=True)
    for edits in ((), (gs.Steer(random_sae(model, "1.res"), 3, 4.0),), (everywhere,), (early,)):
        with model.edited(*edits):
            expected = model.capture(ids, ["2.res"])["2.res"].values
            with theirs.trace(ids):
                out = theirs.model.layers[2].output.save()
                logits = theirs.lm_head.output.save()
            torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, expected)
            torch.testing.assert_close(logits, model.logits(ids))
            assert not edits or not torch.allclose(expected, plain(saved / "llama").capture(ids, ["2.res"])["2.res"].values, atol=1e-2)  # fmt: skip


def test_one_of_nnsight_s_without_weights_yet_loads_them(saved: Path) -> None:
    import nnsight

    theirs = nnsight.LanguageModel(str(saved / "llama"), tokenizer=tokenizer(saved / "llama"))
    assert not theirs.dispatched
    model = gs.load_model(theirs)
    assert theirs.dispatched
    assert_same(model, plain(saved / "llama"), "llama")


def test_adapters_within_nnsight_are_seen(saved: Path) -> None:
    import nnsight
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["v_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapper = peft.get_peft_model(loaded(saved / "llama"), config)
    model = gs.load_model(nnsight.NNsight(wrapper), tokenizer=tokenizer(saved / "llama"))
    assert model.name.endswith("with the adapter default")
    torch.testing.assert_close(model.logits(TEXT), wrapper(input_ids=model.tokens(TEXT).ids).logits)
    assert not torch.allclose(model.logits(TEXT), plain(saved / "llama").logits(TEXT), atol=1e-3)


# --- TransformerLens's bridges --------------------------------------------------------------------------------------


def bridge_of(folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), hf_model=loaded(folder), tokenizer=tokenizer(folder), device="cpu")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_s_model_is_read_and_edited_as_the_plain_one_before_compatibility_mode(
    saved: Path, family: str
) -> None:
    bridge = bridge_of(saved / family)
    model = gs.load_model(bridge)
    assert model.hf is bridge.original_model
    assert model.name == str(saved / family)
    assert_same(model, plain(saved / family), family)
    assert_edited_alike(model, plain(saved / family))
    assert_same_way_to_the_logits(model, plain(saved / family))
    found, _ = model.capture(TEXT, ["1.res"]), None
    _, cache = bridge.run_with_cache(model.tokens(TEXT).ids)
    torch.testing.assert_close(found["1.res"].values, cache["blocks.1.hook_out"], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_after_compatibility_mode_it_is_refused(saved: Path, family: str) -> None:
    bridge = bridge_of(saved / family)
    model = gs.load_model(bridge)
    bridge.enable_compatibility_mode()
    for read in (lambda: gs.load_model(bridge), lambda: model.logits(TEXT), lambda: model.capture(TEXT, ["1.res"])):
        with pytest.raises(InputError, match="TransformerLens has rewritten this model's weights") as raised:
            read()
        assert "\n" not in str(raised.value)


# --- TransformerLens 3's HookedTransformer --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hooked_transformer_has_the_sites_of_the_model_that_it_was_made_of(saved: Path, family: str) -> None:
    theirs = hooked_of(saved / family, family)
    model = gs.load_model(theirs)
    assert model.name == str(saved / family)
    assert_same(model, plain(saved / family), family)
    assert_edited_alike(model, plain(saved / family))
    assert_same_way_to_the_logits(model, plain(saved / family))
    assert hooks(model) == hooks(gs.load_model(theirs)) == 0
    _, cache = theirs.run_with_cache(model.tokens(TEXT).ids)
    for hook, site in (("hook_resid_post", "res"), ("hook_mlp_out", "mlp"), ("hook_attn_out", "att_out"), ("attn.hook_z", "att")):  # fmt: skip
        values = cache[f"blocks.1.{hook}"]
        values = values.flatten(2) if values.ndim == 4 else values
        assert torch.equal(model.capture(TEXT, [f"1.{site}"])[f"1.{site}"].values, values)


def test_its_whole_jacobian_is_the_plain_model_s(saved: Path) -> None:
    for family in ("gpt2", "gemma2"):
        ours, theirs = gs.load_model(hooked_of(saved / family, family)), plain(saved / family)
        found, expected = (one.jacobian("the moon sang", "1.res") for one in (ours, theirs))
        torch.testing.assert_close(found.this, expected.this, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.later, expected.later, atol=1e-4, rtol=1e-3)
        assert expected.later.abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_processed_as_by_default_it_keeps_the_sites_that_processing_does_not_move(saved: Path, family: str) -> None:
    """Without a LayerNorm there is no mean to take out; what is folded is named."""
    processed = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), True)
    model, other = gs.load_model(hooked_of(saved / family, family, **processed)), plain(saved / family)
    with pytest.raises(SiteNotFound, match=r"1\.transcoder.*fold_ln"):
        model.capture(TEXT, ["1.transcoder"])
    wanted = [site for site in sites(family) if not site.endswith(".transcoder")]
    if family == "qwen2":
        with pytest.raises(SiteNotFound, match=r"1\.att.*fold_value_biases"):
            model.capture(TEXT, ["1.att"])
        wanted = [site for site in wanted if not site.endswith(".att")]
    found, expected = model.capture(TEXT, wanted, logits=True), other.capture(TEXT, wanted, logits=True)
    for site in wanted:
        torch.testing.assert_close(found[site].values, expected[site].values, atol=3e-5, rtol=1e-4)
    if family != "gemma2":  # its cap bends logits that are moved
        torch.testing.assert_close(found.logits.log_softmax(-1), expected.logits.log_softmax(-1), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_one_whose_mean_was_taken_out_is_refused(saved: Path, family: str) -> None:
    theirs = hooked_of(saved / family, family, center_writing_weights=True)
    with pytest.raises(InputError, match=r"center_writing_weights\): load it with HookedTransformer.from_pretrained_no_p") as raised:  # fmt: skip
        gs.load_model(theirs)
    assert "\n" not in str(raised.value)
    later = hooked_of(saved / family, family)
    model = gs.load_model(later)
    later.load_state_dict(theirs.state_dict())
    with pytest.raises(InputError, match="center_writing_weights"):
        model.logits(TEXT)


def test_one_in_which_saes_stand_is_refused(saved: Path) -> None:
    import sae_lens

    theirs = hooked_of(saved / "llama", "llama")
    theirs.__class__ = sae_lens.HookedSAETransformer
    theirs._acts_to_saes = {}
    model = gs.load_model(theirs)
    theirs.add_sae(random_sae(plain(saved / "llama")).to_saelens())
    for read in (lambda: gs.load_model(theirs), lambda: model.logits(TEXT)):
        with pytest.raises(InputError, match=r"SAEs stand in this HookedSAETransformer.*reset_saes\(\)"):
            read()
