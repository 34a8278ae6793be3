"""Models that are in memory already, in the hands of transformers and PEFT (of nnsight and TransformerLens in
`peer/test_peer_models.py`): the same sites with the same tensors, which transformers' own hidden states and PEFT's own
merging tell.
"""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

import gemscope as gs
from by_hand import TEXT, hooks, random_sae
from gemscope.activations.direct import DirectPath
from gemscope.errors import InputError, ModelNotFound
from gemscope.testing import tiny_model

FAMILIES = ["llama", "gemma2", "gpt2"]
SITES = ["embed", "0.att", "1.att_out", "1.mid", "1.transcoder", "1.transcoder_nogain", "1.mlp", "2.res"]
TARGETS = {"llama": ["q_proj", "o_proj", "down_proj"], "gemma2": ["v_proj", "o_proj", "up_proj"], "gpt2": ["c_attn", "c_proj"]}  # fmt: skip

# PEFT's own use of transformers, and what it says to its own tuning of norms.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Unsupported layer type")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        model = tiny_model(family)
        model.hf.save_pretrained(folder / family)
        model.tokenizer.save_pretrained(folder / family)
    return folder


def loaded(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def with_adapter(hf: transformers.PreTrainedModel, family: str, name: str = "default", seed: int = 0) -> peft.PeftModel:
    torch.manual_seed(seed)
    config = peft.LoraConfig(target_modules=TARGETS[family], init_lora_weights=False, r=4, task_type="CAUSAL_LM",
                             fan_in_fan_out=family == "gpt2")  # fmt: skip
    return peft.get_peft_model(hf, config, adapter_name=name)


def assert_same(ours: gs.LanguageModel, theirs: gs.LanguageModel) -> None:
    found, expected = (one.capture(TEXT, SITES, logits=True) for one in (ours, theirs))
    for site in SITES:
        torch.testing.assert_close(found[site].values, expected[site].values, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-5, rtol=1e-4)


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_is_taken_as_it_is_with_the_tokenizer_of_its_name(saved: Path, family: str) -> None:
    hf = loaded(saved / family)
    model = gs.load_model(hf)
    assert model.hf is hf
    assert (model.name, model.origin) == (str(saved / family), "memory")
    assert_same(model, gs.load_model(saved / family))
    ids = model.tokens(TEXT).ids
    hidden = hf(input_ids=ids, output_hidden_states=True).hidden_states
    found = model.capture(TEXT, ["0.res", "1.res"])
    for layer in (0, 1):
        assert torch.equal(found[f"{layer}.res"].values, hidden[layer + 1])


def test_a_tokenizer_that_is_given_goes_first_and_one_is_asked_for_where_none_can_be_found(saved: Path) -> None:
    tiny = tiny_model("llama")
    model = gs.load_model(tiny.hf, tokenizer=tiny.tokenizer)
    assert model.tokenizer is tiny.tokenizer
    assert model.name == "LlamaForCausalLM"
    with pytest.raises(InputError, match="does not say what it was loaded by: give its tokenizer, as in"):
        gs.load_model(tiny.hf)
    tiny.hf.config._name_or_path = str(saved / "gone")
    with pytest.raises(
        ModelNotFound, match=r"is not there: .*; or give it, as in load_model\(model, tokenizer="
    ) as raised:
        gs.load_model(tiny.hf)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="which brings its own"):
        gs.load_model(saved / "llama", tokenizer=tiny.tokenizer)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"device": "cpu"}, {"device_map": "auto"}, {"revision": "main"}, {"attn_implementation": "eager"}],
)  # fmt: skip
def test_what_is_chosen_on_loading_is_refused_for_what_is_loaded(options: dict[str, str]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(InputError, match=f"{key}='{value}' given for a model that is in memory already"):
        gs.load_model(tiny_model("llama").hf, **options)


@pytest.mark.parametrize("given", [None, 3, ["gpt2"], object(), {"model": 1}])
def test_what_is_no_model_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(InputError, match=f"a {type(given).__name__} is no model: expected") as raised:
        gs.load_model(given)
    assert "\n" not in str(raised.value)


def test_a_model_of_a_kind_that_is_not_read_is_refused_by_its_kind() -> None:
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(InputError, match="models of type 'bert' are not known here"):
        gs.load_model(transformers.BertModel(config), tokenizer=tiny_model("llama").tokenizer)
    with pytest.raises(InputError, match="models of type None are not known here"):
        gs.load_model(torch.nn.Linear(2, 2), tokenizer=tiny_model("llama").tokenizer)


# --- PEFT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_active_adapter_of_peft_is_seen_at_every_site(saved: Path, family: str) -> None:
    wrapper = with_adapter(loaded(saved / family), family)
    model = gs.load_model(wrapper)
    assert model.name == f"{saved / family} with the adapter default"
    ids = model.tokens(TEXT).ids
    theirs = wrapper(input_ids=ids, output_hidden_states=True)
    found = model.capture(TEXT, ["0.res", "1.res"], logits=True)
    torch.testing.assert_close(found.logits, theirs.logits)
    for layer in (0, 1):
        torch.testing.assert_close(found[f"{layer}.res"].values, theirs.hidden_states[layer + 1])
    merged = with_adapter(loaded(saved / family), family).merge_and_unload()
    assert_same(model, gs.load_model(merged))
    plain = gs.load_model(saved / family).capture(TEXT, SITES)
    moved = [
        site
        for site in SITES
        if not torch.allclose(plain[site].values, model.capture(TEXT, SITES)[site].values, atol=1e-3)
    ]
    assert moved == SITES[1:]  # all but the embedding


def test_the_adapter_that_is_active_is_the_one_that_is_seen(saved: Path) -> None:
    wrapper = with_adapter(loaded(saved / "llama"), "llama", "one")
    torch.manual_seed(1)
    wrapper.add_adapter("two", peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False, r=2))
    ids = tiny_model("llama").tokens(TEXT).ids
    seen = []
    for name in ("one", "two"):
        wrapper.set_adapter(name)
        model = gs.load_model(wrapper)
        assert model.name.endswith(f" with the adapter {name}")
        seen.append(model.capture(TEXT, ["2.res"])["2.res"].values)
        torch.testing.assert_close(model.logits(TEXT), wrapper(input_ids=ids).logits)
    assert not torch.allclose(*seen, atol=1e-3)
    with wrapper.disable_adapter():
        plain = gs.load_model(saved / "llama").capture(TEXT, ["2.res"])["2.res"].values
        torch.testing.assert_close(model.capture(TEXT, ["2.res"])["2.res"].values, plain)


def test_an_adapter_that_transformers_added_itself_is_seen_too(saved: Path) -> None:
    hf = loaded(saved / "llama")
    torch.manual_seed(0)
    hf.add_adapter(peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False, r=2), adapter_name="mine")
    model = gs.load_model(hf)
    assert model.hf is hf
    assert model.name == f"{saved / 'llama'} with the adapter mine"
    hidden = hf(input_ids=model.tokens(TEXT).ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.capture(TEXT, ["0.res"])["0.res"].values, hidden[1])
    plain = gs.load_model(saved / "llama")
    assert not torch.allclose(plain.logits(TEXT), model.logits(TEXT), atol=1e-3)


def test_a_model_with_an_adapter_is_edited_and_read_as_the_merged_one(saved: Path) -> None:
    ours = gs.load_model(with_adapter(loaded(saved / "gemma2"), "gemma2"))
    merged = gs.load_model(with_adapter(loaded(saved / "gemma2"), "gemma2").merge_and_unload())
    sae = random_sae(ours)
    edited = []
    for one in (ours, merged):
        with one.edited(gs.Steer(sae, 3, 4.0)):
            edited.append(one.logits(TEXT))
    torch.testing.assert_close(*edited, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(edited[0], ours.logits(TEXT), atol=1e-3)
    assert hooks(ours) == 0


NORMS = {"llama": ["post_attention_layernorm", "norm"], "gpt2": ["ln_2", "ln_f"], "gemma2": ["pre_feedforward_layernorm", "norm"]}  # fmt: skip


def moved_by_hand(hf: transformers.PreTrainedModel, names: list[str], seed: int = 0) -> transformers.PreTrainedModel:
    """Weights of the modules of these names moved: in PEFT's wrapper those that it trains, else the model's own."""
    draw = torch.Generator().manual_seed(seed)
    wrapped = any(mark in name for name, _ in hf.named_parameters() for mark in ("modules_to_save", "ln_tuning_layers"))
    for name, weight in hf.named_parameters():
        path = name.split(".")
        mine = any(one in path for one in names) and (
            not wrapped or "modules_to_save" in path or "ln_tuning_layers" in path
        )
        if mine:
            weight.data += torch.randn(weight.shape, generator=draw) * 0.3
    return hf


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["copies", "norms"])
def test_norms_that_an_adapter_replaces_are_read_as_what_they_are(saved: Path, family: str, kind: str) -> None:
    """PEFT puts a module of its own where the norm was: what the norm is, and its weights, lie behind it."""
    names = NORMS[family]
    if kind == "norms":
        config = peft.LNTuningConfig(target_modules=names, task_type="CAUSAL_LM")
    else:  # an adapter that does nothing, and whole copies beside it
        config = peft.LoraConfig(target_modules=TARGETS[family], modules_to_save=names, task_type="CAUSAL_LM",
                                 fan_in_fan_out=family == "gpt2")  # fmt: skip
    ours = gs.load_model(moved_by_hand(peft.get_peft_model(loaded(saved / family), config), names))
    plain = gs.load_model(moved_by_hand(loaded(saved / family), names))
    assert_same(ours, plain)
    directions = torch.randn(3, ours.d_model, generator=torch.Generator().manual_seed(0))
    found = []
    for one in (ours, plain):
        path = DirectPath(one, gs.Site(1, "res"))
        with path.unembedding() as matrix:
            found.append(path.carried(directions) @ matrix.float().T)
        assert ("centred as LayerNorm does" in path.words) == (family == "gpt2")
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
