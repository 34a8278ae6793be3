"""SAELens's names of places, and the sites that they mean."""

import pytest

from gemscope.activations.families import FAMILIES
from gemscope.activations.site import KINDS, Site
from gemscope.errors import FileError
from gemscope.features.files.hook_names import hook_of, module_of, site_of_hook, site_of_module
from saelens_folders import MODELS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embed"])
def test_every_site_has_a_hook_and_mostly_a_module_that_lead_back(kind, model):
    if kind == "mlp_raw" and "gemma" not in model:
        return
    site = Site(11, kind)
    assert site_of_hook(hook_of(site), model, "a file") == site
    module = module_of(site, model)
    assert (module is None) == (kind == "transcoder_nogain")
    if module is not None:
        assert site_of_module(module, model, "a file") == site


@pytest.mark.parametrize(
    ("name", "model", "site"),
    [
        ("model.layers.7", "HuggingFaceTB/SmolLM2-135M", "7.res"),
        ("model.layers.7.pre_feedforward_layernorm.output", None, "7.transcoder"),
        ("model.layers.7.pre_feedforward_layernorm.input", "google/gemma-2-2b", "7.mid"),
        ("model.language_model.layers.7.output", "google/gemma-3-4b-it", "7.res"),
        ("model.layers.7.mlp.output", "google/gemma-2-2b", "7.mlp_raw"),
        ("model.layers.7.mlp", "google/gemma-2b", "7.mlp"),  # the first Gemma has no second norm
        ("model.layers.7.post_attention_layernorm.output", "meta-llama/Llama-3.2-1B", "7.transcoder"),
        ("model.layers.7.post_attention_layernorm.output", "google/gemma-2-2b", "7.att_out"),
        ("transformer.h.7.attn.c_proj.input", "gpt2", "7.att"),
        ("gpt_neox.layers.7.mlp", "EleutherAI/pythia-70m", "7.mlp"),
        ("model.layers.7.mlp", "allenai/OLMo-2-0425-1B", "7.mlp_raw"),
        ("model.layers.7.mlp.input", "allenai/OLMo-2-0425-1B", "7.mid"),
        ("model.layers.7.mlp.input", "microsoft/phi-2", "7.transcoder"),
        ("model.layers.7.self_attn.dense.input", "microsoft/phi-2", "7.att"),
        ("model.layers.7.post_attention_layernorm.output", "microsoft/Phi-3-mini-4k-instruct", "7.transcoder"),
        ("transformer.h.7.mlp.dense_4h_to_h", "bigscience/bloom-560m", "7.mlp"),
        ("transformer.h.7.ln_mlp.output", "tiiuae/falcon-40b", "7.transcoder"),
        ("transformer.h.7.mlp.input", "EleutherAI/gpt-j-6b", "7.transcoder"),
        ("model.decoder.layers.7.fc2", "facebook/opt-125m", "7.mlp"),
        ("model.decoder.layers.7.final_layer_norm.input", None, "7.mid"),
        ("model.layers.7", "ibm-granite/granite-3.0-2b-base", "7.res"),
    ],
)
def test_modules_are_read_as_their_family_means_them(name, model, site):
    assert str(site_of_module(name, model, "a file")) == site


@pytest.mark.parametrize(
    ("model", "site"),
    [
        ("pythia-70m-deduped", "embed"),
        ("gemma-2-2b", "embed"),
        ("meta-llama/Llama-3.1-8B", "embed"),
        ("gpt2-small", None),
        ("facebook/opt-125m", None),
        ("bigscience/bloom-560m", None),
        ("ibm-granite/granite-3.0-2b-base", None),
        (None, None),
    ],
)
def test_what_goes_into_the_first_block_is_the_embedding_where_nothing_is_added_to_it(model, site):
    if site is not None:
        assert str(site_of_hook("blocks.0.hook_resid_pre", model, "a file")) == site
        return
    with pytest.raises(FileError, match=r"blocks\.0\.hook_resid_pre"):
        site_of_hook("blocks.0.hook_resid_pre", model, "a file")


PUBLISHED = {
    "bigscience/bloom-560m": "bloom", "tiiuae/falcon-7b": "falcon", "google/gemma-2b": "gemma", "gemma-1.1-7b-it": "gemma",
    "gemma-2-9b": "gemma2", "google/gemma-3-270m": "gemma3", "gpt2-small": "gpt2", "pythia-70m-deduped": "gpt_neox",
    "openai/gpt-oss-20b": "gpt_oss", "EleutherAI/gpt-j-6b": "gptj", "ibm-granite/granite-3.0-2b-base": "granite",
    "meta-llama/Llama-3.1-8B": "llama", "mistralai/Ministral-8B-Instruct-2410": "ministral", "mistral-7b": "mistral",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral", "allenai/OLMo-2-0425-1B": "olmo2", "facebook/opt-125m": "opt",
    "microsoft/phi-1_5": "phi", "microsoft/phi-4": "phi3", "Qwen/Qwen2.5-1.5B": "qwen2", "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen1.5-MoE-A2.7B": "qwen2_moe", "Qwen/Qwen3-30B-A3B": "qwen3_moe", "HuggingFaceTB/SmolLM3-3B": "smollm3",
    "Qwen/Qwen3.5-27B": "qwen3_5", "stabilityai/stablelm-2-1_6b": "stablelm", "bigcode/starcoder2-3b": "starcoder2",
}  # fmt: skip


def test_a_name_is_told_for_every_family() -> None:
    built_alike = {"gemma3_text", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}
    assert {*PUBLISHED.values(), *built_alike} == set(FAMILIES)


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_place_that_a_module_has_leads_back_in_every_family(model) -> None:
    for case in FAMILIES[PUBLISHED[model]]:
        for kind, point in case.points.items():
            name = f"{case.layers[0]}.5{'.' if point.module else ''}{point.module}.{point.end}"
            if point.transform == "plain" and not (model.startswith("ibm") and kind in ("att_out", "mlp")):
                assert site_of_module(name, model, "a file") == Site(5, kind), name
    kinds = {kind for case in FAMILIES[PUBLISHED[model]] for kind in case.points}
    for kind in kinds - {"transcoder_nogain"}:
        module = module_of(Site(5, kind), model)
        assert module is None or site_of_module(module, model, "a file") == Site(5, kind)


def test_where_blocks_differ_both_modules_are_the_place_and_neither_is_its_name() -> None:
    for module in ("self_attn.o_proj", "linear_attn.out_proj"):
        assert site_of_module(f"model.layers.5.{module}.input", "Qwen/Qwen3.5-27B", "a file") == Site(5, "att")
        assert site_of_module(f"model.layers.5.{module}", "Qwen/Qwen3.5-27B", "a file") == Site(5, "att_out")
    assert module_of(Site(5, "att"), "Qwen/Qwen3.5-27B") is None
    assert module_of(Site(5, "mlp"), "Qwen/Qwen3.5-27B") == "model.layers.5.mlp.output"


def test_a_place_whose_values_are_scaled_or_normed_is_not_taken_for_another() -> None:
    with pytest.raises(FileError, match="a place that is not known here"):
        site_of_module("model.layers.5.mlp", "ibm-granite/granite-3.0-2b-base", "a file")  # before its multiplier
    with pytest.raises(FileError, match="a place that is not known here"):
        site_of_hook("hook_embed", "bigscience/bloom-560m", "a file")  # behind its norm
