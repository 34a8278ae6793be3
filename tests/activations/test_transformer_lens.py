"""SAEs that were made on a model whose weights TransformerLens had rewritten, read on the model as it is; and models that
it has its hands on. What is right comes from TransformerLens itself: answers/transformer_lens holds what
`peer/processed.py` wrote (`make peer` compares them with what it writes now).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import gemscope as gs
from gemscope.activations.direct import DirectPath
from gemscope.activations.transformer_lens import has_layer_norm, value_bias
from gemscope.errors import FileError, InputError, Mismatch
from gemscope.features.files.saving import save_sae
from gemscope.features.fit import answered_for
from gemscope.features.metrics import explained_variance
from gemscope.reports.attribute import attribute

HERE = Path(__file__).parents[1]
ANSWERS = HERE / "answers" / "transformer_lens"
PEER = HERE.parent / ".venv-peer" / "bin" / "python"

D, F, LAYER, VOCAB = 16, 48, 1, 61
SIZES = {"num_hidden_layers": 2, "hidden_size": D, "num_attention_heads": 4, "intermediate_size": 32,
         "max_position_embeddings": 32, "vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
CONFIGS = {
    "gpt2": transformers.GPT2Config(n_layer=2, n_embd=D, n_head=4, n_positions=32, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0),
    "pythia": transformers.GPTNeoXConfig(rotary_pct=0.5, **SIZES),
    "qwen2": transformers.Qwen2Config(num_key_value_heads=2, **SIZES),
}  # fmt: skip
HOOKS = {
    "hook_embed": "embed",
    f"blocks.{LAYER}.attn.hook_z": f"{LAYER}.att",
    f"blocks.{LAYER}.hook_attn_out": f"{LAYER}.att_out",
    f"blocks.{LAYER}.hook_mlp_out": f"{LAYER}.mlp",
    f"blocks.{LAYER}.hook_resid_post": f"{LAYER}.res",
    f"blocks.{LAYER}.ln2.hook_normalized": f"{LAYER}.transcoder_nogain",
}
CENTRED = ("hook_embed", *list(HOOKS)[2:5])
LAYER_NORM = ("gpt2", "pythia")
CENTRE = {"center_writing_weights": True}


def waves(tensor, place, around=0.0):
    """Weights that are the same everywhere, without a generator of random numbers."""
    steps = torch.arange(tensor.numel(), dtype=torch.float64)
    return ((steps * (1.7 + 0.1 * place)).sin() * 0.25 + around).reshape(tensor.shape).to(tensor.dtype)


@torch.no_grad()
def tiny(kind):
    hf = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind])
    for place, (name, weight) in enumerate(sorted(hf.named_parameters())):
        is_gain = name.endswith("weight") and weight.ndim == 1
        weight.copy_(waves(weight, place, 0.8 if is_gain else 0.05))
    return hf.eval()


class Ids:
    """A tokenizer for ids alone: nothing is special, and no text has any."""

    added_tokens_decoder, all_special_ids, pad_token_id, eos_token_id = {}, [], 0, 0

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __call__(self, text, **_):
        return {"input_ids": []}

    def convert_ids_to_tokens(self, ids):
        return [None] * len(ids)


def model_of(kind):
    hf = tiny(kind)
    return gs.LanguageModel(hf, Ids(hf.config.vocab_size), name=kind)


def sae_weights():
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    made = {name: waves(torch.empty(shape), place + 5) for place, (name, shape) in enumerate(shapes.items())}
    return made | {"W_dec": made["W_dec"] / 2, "b_enc": made["b_enc"] - 0.2}


def answer(kind):
    return load_file(ANSWERS / f"{kind}.safetensors")


def theirs(kind, hook, options="default"):
    return answer(kind)[f"{options}/{hook.removeprefix(f'blocks.{LAYER}.')}"]


def folder_of(path, kind, hook, said=None, **changes):
    """As SAELens 6 writes one."""
    path.mkdir(parents=True)
    save_file(sae_weights(), path / "sae_weights.safetensors")
    name = {"gpt2": "gpt2-small", "pythia": "pythia-70m", "qwen2": "qwen2-0.5b"}[kind]
    metadata = {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12", "model_name": name,
                "model_class_name": "HookedTransformer", "hook_name": hook, "model_from_pretrained_kwargs": said}  # fmt: skip
    config = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "apply_b_dec_to_input": False,
        "metadata": metadata | changes,
    }
    (path / "cfg.json").write_text(json.dumps(config))
    return path


def features_of(x):
    w = sae_weights()
    return torch.relu(x @ w["W_enc"] + w["b_enc"])


def decoded(features):
    w = sae_weights()
    return features @ w["W_dec"] + w["b_dec"]


def captured(kind, hook):
    return model_of(kind).capture(answer(kind)["ids"], [HOOKS[hook]], every_token=True)[HOOKS[hook]]


def assert_reads_as_there(sae, kind, hook, options="default", *, moved=False):
    """On the plain model's activations, what the stored weights find in TransformerLens's."""
    x, there = captured(kind, hook), theirs(kind, hook, options)
    assert ((x.values - there).abs().max() > 0.01) == moved
    torch.testing.assert_close(sae.encode(x).to_dense(), features_of(there), rtol=1e-4, atol=1e-5)


# --- what it does to a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", CENTRED)
@pytest.mark.parametrize("kind", LAYER_NORM)
def test_a_centred_site_is_the_plain_one_less_its_mean(kind, hook):
    x = captured(kind, hook).values
    torch.testing.assert_close(x - x.mean(-1, keepdim=True), theirs(kind, hook), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(("options", "norm_folded"), [("default", True), ("values", False)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_folded_value_biases_are_told_from_the_model_alone(kind, options, norm_folded):
    hook = f"blocks.{LAYER}.attn.hook_z"
    z = captured(kind, hook).values
    c = value_bias(tiny(kind), LAYER, norm_folded=norm_folded)
    assert c.abs().max() > 0.05
    torch.testing.assert_close(z - c, theirs(kind, hook, options), rtol=1e-4, atol=5e-6)


def test_gpt2s_value_bias_is_its_closed_formula():
    hf = tiny("gpt2")
    block = hf.transformer.h[LAYER]
    W_V, b_V = block.attn.c_attn.weight[:, 2 * D :], block.attn.c_attn.bias[2 * D :]
    torch.testing.assert_close(value_bias(hf, LAYER, norm_folded=False), b_V.detach())
    torch.testing.assert_close(value_bias(hf, LAYER, norm_folded=True), (b_V + block.ln_1.bias @ W_V).detach())


def test_layer_norm_is_told_from_rms_norm():
    assert [has_layer_norm(tiny(kind)) for kind in CONFIGS] == [True, True, False]


# --- what a folder says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", CENTRED)
@pytest.mark.parametrize("kind", LAYER_NORM)
def test_an_sae_of_centred_activations_finds_the_same_features_in_plain_ones(tmp_path, kind, hook):
    sae = gs.load_sae(folder_of(tmp_path / "sae", kind, hook, CENTRE))
    assert sae.centred
    assert_reads_as_there(sae, kind, hook, moved=True)


@pytest.mark.parametrize("kind", LAYER_NORM)
def test_what_a_norm_has_read_is_not_moved_by_centring(tmp_path, kind):
    hook = f"blocks.{LAYER}.ln2.hook_normalized"
    sae = gs.load_sae(folder_of(tmp_path / "sae", kind, hook, CENTRE))
    assert not sae.centred
    assert_reads_as_there(sae, kind, hook)


def test_a_model_of_rms_norm_is_never_centred(tmp_path):
    hook = f"blocks.{LAYER}.hook_resid_post"
    sae = gs.load_sae(folder_of(tmp_path / "sae", "qwen2", hook, CENTRE))
    assert not sae.centred
    assert_reads_as_there(sae, "qwen2", hook)


def test_whether_an_unknown_model_was_centred_is_asked_of_the_model(tmp_path):
    hook = f"blocks.{LAYER}.hook_resid_post"
    folder = folder_of(tmp_path / "sae", "gpt2", hook, CENTRE, model_name="my-own-model")
    with pytest.raises(FileError, match=r"give the model, as in load_sae\(\.\.\., model=model\)"):
        gs.load_sae(folder)
    assert gs.load_sae(folder, model=model_of("gpt2")).centred
    assert not gs.load_sae(folder, model=model_of("qwen2")).centred


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("options", "said"), [("default", {"fold_ln": True, "fold_value_biases": True}),
                                               ("values", {"fold_value_biases": True})])  # fmt: skip
def test_an_sae_of_heads_without_their_value_biases_finds_the_same_features(tmp_path, kind, options, said):
    hook = f"blocks.{LAYER}.attn.hook_z"
    folder = folder_of(tmp_path / "sae", kind, hook, said)
    sae = gs.load_sae(folder, model=model_of(kind))
    assert_reads_as_there(sae, kind, hook, options, moved=True)
    z, there = captured(kind, hook).values, theirs(kind, hook, options)
    torch.testing.assert_close(sae(z) - z, decoded(features_of(there)) - there, rtol=1e-4, atol=1e-5)
    with pytest.raises(FileError, match="value biases TransformerLens had folded away: give the model"):
        gs.load_sae(folder)
    again = gs.load_sae(save_sae(sae, tmp_path / "again"))  # which needs no model any more
    assert again.digest == sae.digest


def test_heads_of_a_model_without_value_biases_need_no_model(tmp_path):
    hook, said = f"blocks.{LAYER}.attn.hook_z", {"fold_value_biases": True}
    folder = folder_of(tmp_path / "sae", "gpt2", hook, said, model_name="gemma-2-2b")
    assert torch.equal(gs.load_sae(folder).W_enc, sae_weights()["W_enc"])


def test_a_model_of_another_width_is_not_taken_for_the_heads_own(tmp_path):
    folder = folder_of(tmp_path / "sae", "gpt2", f"blocks.{LAYER}.attn.hook_z", {"fold_value_biases": True})
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=VOCAB))
    with pytest.raises(Mismatch, match="reads 16 numbers per token, other has 32 there"):
        gs.load_sae(folder, model=gs.LanguageModel(other, None, name="other"))


def test_heads_in_a_basis_of_their_own_are_refused(tmp_path):
    said = {"refactor_factored_attn_matrices": True}
    with pytest.raises(FileError, match="refactor_factored_attn_matrices"):
        gs.load_sae(folder_of(tmp_path / "sae", "gpt2", f"blocks.{LAYER}.attn.hook_z", said))


@pytest.mark.parametrize(
    ("version", "said", "centred"),
    [
        ("0.1.0", None, True),
        ("3.22.2", None, True),
        ("3.22.2", {}, True),
        ("3.22.2", {"center_writing_weights": False}, False),
        ("4.0.0", None, False),
        ("5.11.0", {}, False),
        ("6.54.12", None, False),
        (None, None, False),
    ],
)
def test_what_a_folder_does_not_say_is_what_its_version_did(tmp_path, version, said, centred):
    old = {"d_in": D, "d_sae": F, "model_name": "gpt2-small", "hook_name": f"blocks.{LAYER}.hook_resid_post",
           "apply_b_dec_to_input": False, "sae_lens_training_version": version}  # fmt: skip
    if said is not None:
        old["model_from_pretrained_kwargs"] = said
    save_file(sae_weights(), tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    sae = gs.load_sae(tmp_path)
    assert sae.centred is centred
    assert gs.load_sae(save_sae(sae, tmp_path / "again")).digest == sae.digest


def test_a_model_that_transformers_loaded_was_never_processed(tmp_path):
    hook = f"blocks.{LAYER}.hook_resid_post"
    changes = {"model_class_name": "AutoModelForCausalLM", "sae_lens_training_version": "3.22.2"}
    assert not gs.load_sae(folder_of(tmp_path / "sae", "gpt2", hook, None, **changes)).centred


@pytest.mark.parametrize(
    ("path", "centred"),
    [
        ("GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", True),
        ("models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/0a1b/blocks.8.hook_resid_pre", True),
        ("gpt2-small-mlp-out-saes/sae", True),
        ("models--somebody--else/snapshots/0a1b/sae", False),
    ],
)
def test_repositories_that_do_not_say_it_are_known_by_name(tmp_path, path, centred):
    folder = folder_of(tmp_path / path, "gpt2", f"blocks.{LAYER}.hook_resid_post", sae_lens_training_version=None)
    assert gs.load_sae(folder).centred is centred


def test_a_transcoder_whose_output_lacks_a_mean_is_refused(tmp_path):
    hook, out = f"blocks.{LAYER}.ln2.hook_normalized", f"blocks.{LAYER}.hook_mlp_out"
    folder = folder_of(tmp_path / "sae", "gpt2", hook, CENTRE, hook_name_out=out)
    with pytest.raises(FileError, match="lacks a mean"):
        gs.load_sae(folder)


# --- what reads its output ------------------------------------------------------------------------------------------


def centred_sae(tmp_path, kind):
    return gs.load_sae(folder_of(tmp_path / "sae", kind, f"blocks.{LAYER}.hook_resid_post", CENTRE))


@pytest.mark.parametrize("kind", LAYER_NORM)
def test_the_mean_goes_past_a_centred_sae(tmp_path, kind):
    sae, hook = centred_sae(tmp_path, kind), f"blocks.{LAYER}.hook_resid_post"
    x, there = captured(kind, hook), theirs(kind, hook)
    mean = x.values.mean(-1, keepdim=True)
    torch.testing.assert_close(sae(x), decoded(features_of(there)) + mean, rtol=1e-4, atol=1e-5)
    values = x.values.clone().requires_grad_()
    torch.testing.assert_close(sae(values).detach(), sae(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYER_NORM)
def test_spliced_in_it_makes_of_the_plain_model_what_it_makes_of_the_processed_one(tmp_path, kind):
    sae, model, ids = centred_sae(tmp_path, kind), model_of(kind), answer(kind)["ids"]
    with model.edited(gs.Splice(sae, error=False, every_token=True)):
        spliced = model.logits(ids).log_softmax(-1)
    assert (model.logits(ids).log_softmax(-1) - spliced).abs().max() > 0.1
    torch.testing.assert_close(spliced, answer(kind)["spliced"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYER_NORM)
def test_what_it_explains_is_what_it_explains_of_the_processed_model(tmp_path, kind):
    sae, x = centred_sae(tmp_path, kind), captured(kind, f"blocks.{LAYER}.hook_resid_post").values[0]
    ours = explained_variance(*answered_for(sae, x, sae(x)))
    assert ours == pytest.approx(1 - answer(kind)["fvu"].item(), abs=1e-5)
    assert abs(ours - explained_variance(x, sae(x))) > 1e-3, "with the mean in, it would be another figure"


def test_score_and_check_say_so_too(tmp_path):
    sae, model = centred_sae(tmp_path, "gpt2"), model_of("gpt2")
    rows = model.tokens(torch.arange(60).reshape(3, 20) * 7 % VOCAB)
    x = model.capture(rows, [f"{LAYER}.res"])[f"{LAYER}.res"].rows
    w, plain = sae_weights(), (x - x.mean(-1, keepdim=True)).double()
    out = torch.relu(plain @ w["W_enc"].double() + w["b_enc"].double()) @ w["W_dec"].double() + w["b_dec"].double()
    fvu = ((plain - out).pow(2).sum() / (plain - plain.mean(0)).pow(2).sum()).item()
    model.rows = lambda corpus, **options: iter([rows])
    scored = gs.score(model, sae, gs.Corpus.sample(), loss_tokens=0)
    assert scored.fvu == pytest.approx(fvu, rel=1e-5)
    checked = gs.check(model, sae, gs.Corpus.sample())
    assert checked.explained_variance == pytest.approx(1 - fvu, abs=1e-5)


def test_the_parts_of_an_attribution_add_up_with_the_mean_among_them(tmp_path):
    sae, model = centred_sae(tmp_path, "gpt2"), model_of("gpt2")
    model.tokenizer.decode = lambda ids, **options: " ".join(map(str, ids))
    found = attribute(model, sae, torch.arange(12) * 5 % VOCAB, target=7, position=6, k=3)
    parts = found.features + found.error + found.bias + found.skip + found.uncounted
    assert abs(found.features) + abs(found.error) > 1e-4
    assert parts == pytest.approx(found.total, abs=1e-6)
    assert found.skip == pytest.approx(0, abs=1e-6)  # which the model's norms do not see


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_centred_sae_is_saved_as_what_it_is(tmp_path, dtype):
    sae = centred_sae(tmp_path, "gpt2")
    folder = save_sae(sae, tmp_path / "saved", dtype=dtype)
    again = gs.load_sae(folder)
    assert again.centred
    if dtype is None:
        assert again.digest == sae.digest
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True, "fold_value_biases": False}


def test_it_is_another_sae_than_one_of_the_same_weights_that_is_not_centred():
    saes = [gs.SAE(4, 8, centred=centred, site="1.res") for centred in (False, True)]
    assert saes[0].digest != saes[1].digest
    assert "centred" in repr(saes[1])
    with pytest.raises(InputError, match="a mean is left where it is read"):
        gs.SAE(4, 8, 6, centred=True)


# --- models in its hands --------------------------------------------------------------------------------------------


class Bridge(nn.Module):
    """As much of TransformerLens 4's bridges as tells them: what it stands for, and how it was marked."""

    def __init__(self, original, **marks):
        super().__init__()
        self.add_module("_original_component", original)
        vars(self).update(marks)

    def forward(self, *args, **kwargs):
        return self._original_component(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_original_component"), name)


def bridged(kind="gpt2", **marks):
    hf = tiny(kind)
    hf.transformer.h = nn.ModuleList(Bridge(block, **marks) for block in hf.transformer.h)
    return hf


def test_a_model_that_a_bridge_looks_at_is_read_as_it_is():
    ids = torch.arange(8)
    plain, looked_at = model_of("gpt2"), gs.LanguageModel(bridged(), model_of("gpt2").tokenizer, name="bridged")
    torch.testing.assert_close(looked_at.logits(ids), plain.logits(ids))


def test_norms_and_projections_behind_bridges_are_computed_with_as_what_they_are():
    hf, plain = tiny("gpt2"), model_of("gpt2")
    for block in hf.transformer.h:
        block.ln_2, block.attn.c_proj = Bridge(block.ln_2), Bridge(block.attn.c_proj)
    hf.transformer.ln_f = Bridge(hf.transformer.ln_f)
    looked_at = gs.LanguageModel(hf, plain.tokenizer, name="bridged")
    site = f"{LAYER}.transcoder_nogain"
    found, expected = (one.capture(torch.arange(8), [site])[site].values for one in (looked_at, plain))
    torch.testing.assert_close(found, expected)
    directions = waves(torch.empty(3, D), 0)
    for at in (f"{LAYER}.att", f"{LAYER}.res"):
        paths = [DirectPath(one, gs.Site.parse(at)) for one in (looked_at, plain)]
        torch.testing.assert_close(*(path.carried(directions) for path in paths))
        assert paths[0].words == paths[1].words


def test_a_model_in_compatibility_mode_is_refused_before_and_after():
    with pytest.raises(InputError, match="TransformerLens has rewritten this model's weights"):
        gs.LanguageModel(bridged(compatibility_mode=True), None, name="m")
    hf = bridged()
    model = gs.LanguageModel(hf, model_of("gpt2").tokenizer, name="m")
    model.logits(torch.arange(8))
    for block in hf.transformer.h:
        block.compatibility_mode = True
    for read in (model.logits, lambda ids: model.capture(ids, ["1.res"])):
        with pytest.raises(InputError, match="enable_compatibility_mode"):
            read(torch.arange(8))
    with pytest.raises(InputError, match="enable_compatibility_mode"), model.edited():
        pass


def test_weights_that_were_processed_without_that_mode_are_told_by_themselves():
    hf = bridged()
    nn.init.ones_(hf.transformer.ln_f.weight)
    with pytest.raises(InputError, match="process_weights"):
        gs.LanguageModel(hf, None, name="m")
    hf = bridged()
    embedding = hf.transformer.wte.weight
    embedding.data -= embedding.data.mean(-1, keepdim=True)
    with pytest.raises(InputError, match="process_weights"):
        gs.LanguageModel(hf, None, name="m")


@pytest.mark.parametrize("name", ["TransformerBridge", "HookedEncoder"])
def test_a_model_of_transformer_lens_itself_is_refused_by_name(name):
    kind = type(name, (nn.Module,), {"__module__": "transformer_lens.model_bridge"})
    with pytest.raises(InputError, match=f"a {name} of TransformerLens given: give the transformers model"):
        gs.LanguageModel(kind(), None, name="m")
    derived = type("Mine", (kind,), {"__module__": "somewhere"})
    with pytest.raises(InputError, match="a Mine of TransformerLens"):
        gs.LanguageModel(derived(), None, name="m")


# --- the stored answers ---------------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.skipif(not PEER.exists(), reason="SAELens is not installed in .venv-peer: run `make peer`")
def test_the_stored_answers_are_what_transformer_lens_says_now(tmp_path):
    write_answers(tmp_path, PEER)
    for kind in CONFIGS:
        now, stored = load_file(tmp_path / "answers" / f"{kind}.safetensors"), answer(kind)
        assert now.keys() == stored.keys()
        for name, value in now.items():
            torch.testing.assert_close(value, stored[name], rtol=1e-4, atol=5e-6)


def write_answers(root, python):
    for kind in CONFIGS:
        tiny(kind).save_pretrained(root / "models" / kind)
    save_file(sae_weights(), root / "sae.safetensors")
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [python, HERE / "peer" / "processed.py", root], check=True, capture_output=True, env=os.environ | quiet
    )
