"""Models that PEFT has wrapped: sites are found, adapters stay active. Without PEFT by a wrapper with its module tree,
and with it where it is installed; the truth is the same model with the adapters added to its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import gemscope as gs
from by_hand import TEXT, hooks, random_sae
from gemscope.activations.direct import DirectPath
from gemscope.activations.model import LanguageModel
from gemscope.errors import CorruptFile, InputError, MissingDependency, ModelNotFound, UnsafeFile
from gemscope.testing import tiny_model

FAMILIES = ["llama", "gemma2", "gemma3", "gpt2"]
ADAPTED = {"llama": ["o_proj", "down_proj", "lm_head"], "gemma2": ["o_proj", "down_proj"], "gpt2": ["c_proj", "c_attn"]}
ADAPTED["gemma3"] = ADAPTED["gemma2"]


class Low(nn.Module):
    """A linear layer with an addition of rank 2, with the names that PEFT's has."""

    def __init__(self, base_layer: nn.Module, seed: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        conv = type(base_layer).__name__ == "Conv1D"
        out, self.in_features = reversed(base_layer.weight.shape) if conv else base_layer.weight.shape
        draw = torch.Generator().manual_seed(seed)
        self.lora_A = nn.Parameter(torch.randn(2, self.in_features, generator=draw) * 0.2)
        self.lora_B = nn.Parameter(torch.randn(out, 2, generator=draw) * 0.2)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # without the addition, as PEFT has it

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + (x.to(self.lora_A.dtype) @ self.lora_A.T @ self.lora_B.T).to(x.dtype)


class Tuner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.model(*args, **kwargs)


class Wrapper(Tuner):
    """PeftModel's tree: base_model is the tuner, its model is transformers'."""

    def __init__(self, model: nn.Module, **config: object) -> None:
        nn.Module.__init__(self)
        self.base_model = Tuner(model)
        self.peft_config = {"default": SimpleNamespace(**({"peft_type": "LORA"} | config))}

    def __getattr__(self, name: str) -> object:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.base_model(*args, **kwargs)


def adapted(family: str) -> tuple[LanguageModel, LanguageModel]:
    """The model in a wrapper, and the same with the additions in its weights."""
    inside, merged = tiny_model(family), tiny_model(family)
    found = [name for name, _ in inside.hf.named_modules() if name.split(".")[-1] in ADAPTED[family]]
    found = [name for name in found if "vision" not in name]
    assert len(found) >= 6
    for seed, name in enumerate(found):
        low = Low(inside.hf.get_submodule(name), seed)
        parent, _, last = name.rpartition(".")
        setattr(inside.hf.get_submodule(parent), last, low)
        weight = merged.hf.get_submodule(name).weight
        delta = low.lora_B @ low.lora_A
        weight.add_((delta.T if weight.shape != delta.shape or family == "gpt2" else delta).detach())
    return LanguageModel(Wrapper(inside.hf), inside.tokenizer, name="adapted"), merged


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_a_wrapped_model_are_those_of_the_merged_one(family: str) -> None:
    model, merged = adapted(family)
    sites = ["embed", *(f"{layer}.{kind}" for layer in (0, 2) for kind in ("att", "att_out", "mid", "mlp", "res"))]
    found, expected = model.capture(TEXT, sites, logits=True), merged.capture(TEXT, sites, logits=True)
    for site in sites:
        torch.testing.assert_close(found[site].values, expected[site].values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(found["2.res"].values, tiny_model(family).capture(TEXT, ["2.res"])["2.res"].values)
    assert (model.n_layers, model.width("0.att")) == (merged.n_layers, merged.width("0.att"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrapped_model_is_edited_and_written_with_as_the_merged_one(family: str) -> None:
    model, merged = adapted(family)
    edit = gs.Steer(random_sae(model), 3, 4.0)
    texts = []
    for one in (model, merged):
        with one.edited(edit):
            texts.append(one.generate(TEXT, max_new_tokens=4))
            ids = one.tokens(TEXT).ids
            options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
            texts.append(one.tokenizer.decode(one.hf.generate(ids, **options)[0, ids.shape[1] :], skip_special_tokens=True))  # fmt: skip
    assert len(set(texts)) == 1
    assert hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["0.att", "1.res"])
def test_the_way_to_the_logits_goes_through_the_adapters(family: str, site: str) -> None:
    model, merged = adapted(family)
    directions = torch.randn(3, model.width(site), generator=torch.Generator().manual_seed(0))
    found = []
    for one in (model, merged):
        path = DirectPath(one, gs.Site.parse(site))
        with path.unembedding() as matrix:
            found.append(path.carried(directions) @ matrix.float().T)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_an_embedding_with_an_adapter_has_no_rows_to_read() -> None:
    model = tiny_model("llama")
    embedding = model.hf.model.embed_tokens
    embedding.base_layer = nn.Identity()
    with pytest.raises(InputError, match="the embedding has an adapter"):
        model.capture(TEXT, ["embed"])


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "PREFIX_TUNING", "is_prompt_learning": True},
        {"peft_type": "ADAPTION_PROMPT", "is_adaption_prompt": True},
        {"peft_type": SimpleNamespace(value="XLORA")},
        {"peft_type": "LORA", "alora_invocation_tokens": [3, 4]},
    ],
)
def test_adapters_that_are_no_part_of_the_model_are_refused_by_name(config: dict[str, object]) -> None:
    inside = tiny_model("llama")
    kind = getattr(config["peft_type"], "value", config["peft_type"])
    with pytest.raises(InputError, match=f"an adapter of type {kind}") as raised:
        LanguageModel(Wrapper(inside.hf, **config), inside.tokenizer, name="x")
    assert "\n" not in str(raised.value)


def test_a_model_with_peft_s_mark_that_wraps_nothing_is_taken_as_it_is() -> None:
    """transformers' own `load_adapter` leaves `peft_config` on the model itself."""
    inside = tiny_model("llama")
    inside.hf.peft_config = {"default": SimpleNamespace(peft_type="LORA")}
    assert LanguageModel(inside.hf, inside.tokenizer, name="x").hf is inside.hf


# --- folders --------------------------------------------------------------------------------------------------------


def folder_with(folder: Path, config: object, *, weights: str | None = "adapter_model.safetensors") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights is not None:
        save_file({"x": torch.zeros(1)}, folder / weights)
    return folder


def test_a_folder_with_an_adapter_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemscope.activations.adapters.find_spec", lambda _: None)  # as if PEFT were not installed
    config = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    for name, given, weights, kind, says in (
        ("a", config, "adapter_model.safetensors", MissingDependency, "an adapter on owner/base: pip install peft, or merge"),
        ("b", config, "adapter_model.bin", UnsafeFile, "pickled"),
        ("c", config, None, CorruptFile, "no adapter_model.safetensors"),
        ("d", {"base_model_name_or_path": None}, "adapter_model.safetensors", ModelNotFound, "names no base model"),
        ("e", {"base_model_name_or_path": 3}, None, CorruptFile, "base_model_name_or_path"),
        ("f", "{", None, CorruptFile, "adapter_config.json"),
        ("g", {"base_model_name_or_path": str(tmp_path / "a")}, None, InputError, "an adapter on an adapter"),
        ("h", {"base_model_name_or_path": str(tmp_path / "h")}, None, InputError, "an adapter on an adapter"),
    ):  # fmt: skip
        with pytest.raises(kind, match=says) as raised:
            gs.load_model(folder_with(tmp_path / name, given, weights=weights))
        assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own use of transformers
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_with_peft_itself_a_wrapper_and_a_folder_are_read(family: str, tmp_path: Path) -> None:
    import peft

    base = tiny_model(family)
    base.hf.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    base.hf.name_or_path = str(tmp_path / "base")  # where PEFT looks for it
    targets = ["q_proj", "o_proj", "down_proj"]
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    wrapper = peft.get_peft_model(base.hf, config)
    wrapper.save_pretrained(tmp_path / "adapter")
    ids = base.tokens(TEXT).ids
    truth = wrapper(input_ids=ids).logits
    assert not torch.allclose(truth, tiny_model(family).logits(TEXT), atol=1e-2)
    model = LanguageModel(wrapper, base.tokenizer, name="x")
    loaded = gs.load_model(tmp_path / "adapter")
    for one in (model, loaded):
        torch.testing.assert_close(one.logits(TEXT), truth)
        hidden = wrapper(input_ids=ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(one.capture(TEXT, ["0.res"])["0.res"].values, hidden)
    assert "on " in loaded.origin
    for kind in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ):
        inside = tiny_model(family)
        with pytest.raises(InputError, match="an adapter of type P"):
            LanguageModel(peft.get_peft_model(inside.hf, kind), inside.tokenizer, name="x")
