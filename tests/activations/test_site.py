"""Sites against the models themselves: every kind of every family, against transformers or a block done by hand."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from by_hand import MAIN
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site, locate
from gemscope.errors import InputError, SiteNotFound
from gemscope.testing import tiny_model

TEXT = "The theory and the thing: it was a morning in the other country"
GEMMA = {"gemma2", "gemma3_text", "gemma3"}
every_family = pytest.mark.parametrize("family", MAIN)


@cache
def model_of(family: str) -> LanguageModel:
    return tiny_model(family)


def kinds_of(family: str) -> list[str]:
    missing = {"embed"} | (set() if family in GEMMA else {"mlp_raw"}) | ({"mid"} if family == "gpt_neox" else set())
    return [kind for kind in KINDS if kind not in missing]


def read(model: LanguageModel, text) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Every site there is, by name; and what transformers itself calls the hidden states."""
    sites = [f"{layer}.{kind}" for layer in range(3) for kind in kinds_of(model.name.removeprefix("tiny-"))]
    captured = model.capture(text, ["embed", *sites])
    with torch.no_grad():
        hidden = model.hf(input_ids=model.tokens(text).ids, output_hidden_states=True).hidden_states
    return {str(site): acts.values for site, acts in captured.items()}, hidden


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@every_family
def test_the_residual_stream_is_what_transformers_calls_hidden_states(family):
    model = model_of(family)
    at, hidden = read(model, TEXT)
    assert len(hidden) == 4
    assert torch.equal(at["0.res"], hidden[1])
    assert torch.equal(at["1.res"], hidden[2])
    # After the last block transformers gives the final norm's output: the norm of what is read here, and not it.
    norm = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "gemma3": "model.language_model.norm"}
    final = model.hf.get_submodule(norm.get(family.removesuffix("_sequential"), "model.norm"))
    close(final(at["2.res"]), hidden[3])
    assert not torch.allclose(at["2.res"], hidden[3], atol=0.1)


@every_family
def test_the_embedding_is_the_row_as_stored_unscaled(family):
    model = model_of(family)
    at, hidden = read(model, TEXT)
    rows = model.hf.get_input_embeddings().weight[model.tokens(TEXT).ids]
    assert torch.equal(at["embed"], rows)
    if family in GEMMA:
        close(hidden[0], rows * 32**0.5)  # Gemma multiplies by the root of its width, in one module or another
    elif family == "gpt2":
        close(hidden[0], rows + model.hf.transformer.wpe.weight[: rows.shape[1]])
    else:
        assert torch.equal(hidden[0], rows)


@every_family
def test_what_attention_and_mlp_add_is_what_the_block_adds(family):
    at, hidden = read(model_of(family), TEXT)
    for layer in range(3):
        before, added, mlp = hidden[layer], at[f"{layer}.att_out"], at[f"{layer}.mlp"]
        close(before + added + mlp, at[f"{layer}.res"])
        if family != "gpt_neox":
            close(before + added, at[f"{layer}.mid"])
            close(at[f"{layer}.mid"] + mlp, at[f"{layer}.res"])


@every_family
def test_every_kind_equals_the_block_computed_by_hand(family):
    """On a row of one token: there the softmax is one, so the heads write the value vectors, whatever the positions."""
    model = model_of(family)
    ids = torch.tensor([[57]])
    at, hidden = read(model, ids)
    for layer in range(3):
        expected = by_hand(family, block(model, layer), hidden[layer])
        assert expected.keys() == set(kinds_of(family))
        for kind, value in expected.items():
            close(at[f"{layer}.{kind}"], value)
            assert model.width(f"{layer}.{kind}") == value.shape[-1]
            assert value.abs().mean() > 0.05, f"{kind} is too small to tell anything"


@every_family
def test_no_kind_can_be_mistaken_for_another(family):
    at, _ = read(model_of(family), TEXT)
    names = [name for name in at if name.startswith("1.")]
    for one in names:
        for other in names:
            if one < other and at[one].shape == at[other].shape:
                assert (at[one] - at[other]).norm() > 0.2 * at[one].norm(), (one, other)


@every_family
def test_the_normalised_mlp_input_lacks_the_gain_and_nothing_else(family):
    model = model_of(family)
    at, _ = read(model, TEXT)
    for layer in range(3):
        norm = mlp_norm(family, block(model, layer))
        gain = 1 + norm.weight if family in GEMMA else norm.weight
        bias = getattr(norm, "bias", None)
        bare = at[f"{layer}.transcoder_nogain"]
        close(bare * gain + (0 if bias is None else bias), at[f"{layer}.transcoder"])
        close(bare.pow(2).mean(-1), torch.ones(bare.shape[:-1]))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox_sequential"])
def test_the_heads_go_through_the_output_projection(family):
    model = model_of(family)
    at, _ = read(model, TEXT)
    for layer in range(3):
        each = block(model, layer)
        out = {"gpt2": lambda b: b.attn.c_proj, "gpt_neox_sequential": lambda b: b.attention.dense}.get(
            family, lambda b: b.self_attn.o_proj
        )(each)
        projected = out(at[f"{layer}.att"])
        close(each.post_attention_layernorm(projected) if family in GEMMA else projected, at[f"{layer}.att_out"])


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_sites_hold_in_half_precision(family):
    model = tiny_model(family, dtype=torch.bfloat16)
    acts = model.capture(TEXT, ["1.res", "1.transcoder", "1.transcoder_nogain", "embed"])
    assert acts["1.res"].values.dtype == acts["embed"].values.dtype == torch.bfloat16
    bare, norm = acts["1.transcoder_nogain"].values, mlp_norm(family, block(model, 1))
    assert bare.dtype == torch.float32  # the norm works in float32, and so does who leaves its gain away
    gain = 1 + norm.weight.float() if family in GEMMA else norm.weight.float()
    torch.testing.assert_close(bare * gain, acts["1.transcoder"].values.float(), atol=0.03, rtol=0.02)


def test_sites_are_written_and_read_the_same_way():
    for text in ("20.res", "12.mlp", "5.att", "7.transcoder_nogain", "embed"):
        assert str(Site.parse(text)) == text
    assert Site.parse(" 20.res ") == Site(20, "res") == Site.parse(Site(20, "res"))
    assert Site(3, "res").at(5) == Site(5, "res")


def test_sites_sort_in_the_order_of_computation():
    names = ["embed", "0.att", "0.att_out", "0.mid", "0.transcoder", "0.mlp_raw", "0.mlp", "0.res", "1.att", "10.res"]
    assert [str(site) for site in sorted(Site.parse(name) for name in reversed(names))] == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("res", "needs a layer, as in '20.res'"),
        ("3.embed", "has no layer: write it 'embed'"),
        ("3.resid", "no site called 'resid': the kinds are embed, att,"),
        ("20", "'20' is not a site: write a layer and a kind, as in '20.res'"),
        ("", "'' is not a site"),
        ("-1.res", "'-1.res' is not a site"),
        ("1.5.res", "is not a site"),
        ("blocks.2.hook_resid_post", "is not a site"),
        ("1" * 5000 + ".res", "is not a site"),
    ],
)
def test_what_names_no_site_is_refused_in_one_line(text, says):
    with pytest.raises(SiteNotFound) as raised:
        Site.parse(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "site", "says"),
    [
        ("llama", "3.res", "no layer 3: this model has layers 0 to 2"),
        ("llama", "1.mlp_raw", "no site '1.mlp_raw' in a llama model: it has embed, att, att_out, mid,"),
        ("gpt_neox", "1.mid", "attention and MLP side by side"),
    ],
)
def test_a_site_that_the_model_does_not_have_is_refused_in_one_line(family, site, says):
    model = model_of(family)
    for refused in (lambda: model.capture("the", [site]), lambda: model.width(site)):
        with pytest.raises(SiteNotFound) as raised:
            refused()
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_model_of_an_unknown_kind_is_refused_with_the_known_ones_named():
    stranger = torch.nn.Linear(2, 2)
    stranger.config = type("Config", (), {"model_type": "mamba"})()
    with pytest.raises(
        InputError, match=r"models of type 'mamba' are not known here: .*; known are bloom, falcon, gemma, "
    ):
        locate(stranger, Site(0, "res"))


# --- a block by hand, from its weights alone ------------------------------------------------------------------------


def block(model: LanguageModel, layer: int):
    path = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "gemma3": "model.language_model.layers"}
    family = model.name.removeprefix("tiny-").removesuffix("_sequential")
    return model.hf.get_submodule(f"{path.get(family, 'model.layers')}.{layer}")


def mlp_norm(family: str, block):
    if family in GEMMA:
        return block.pre_feedforward_layernorm
    return block.ln_2 if family == "gpt2" else block.post_attention_layernorm


def by_hand(family: str, block, x: torch.Tensor) -> dict[str, torch.Tensor]:
    if family == "gpt2":
        return _gpt2_by_hand(block, x)
    if family.startswith("gpt_neox"):
        return _neox_by_hand(block, x, parallel=family == "gpt_neox")
    return _llama_by_hand(block, x, gemma=family in GEMMA)


def _llama_by_hand(block, x, *, gemma):
    def norm(module, x, *, gain=True):
        bare = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return bare * (module.weight + gemma) if gain else bare

    def linear(module, x):
        return F.linear(x, module.weight, module.bias)

    attention, mlp = block.self_attn, block.mlp
    values = linear(attention.v_proj, norm(block.input_layernorm, x))
    per_head = values.reshape(1, 1, 2, -1)  # two key-value heads serve four
    heads = per_head.repeat_interleave(2, dim=2).flatten(2)
    added = linear(attention.o_proj, heads)
    if gemma:
        added = norm(block.post_attention_layernorm, added)
    mid = x + added
    before_mlp = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
    normed = norm(before_mlp, mid)
    act = (lambda x: F.gelu(x, approximate="tanh")) if gemma else F.silu
    raw = linear(mlp.down_proj, act(linear(mlp.gate_proj, normed)) * linear(mlp.up_proj, normed))
    out = norm(block.post_feedforward_layernorm, raw) if gemma else raw
    return {
        "att": heads,
        "att_out": added,
        "mid": mid,
        "transcoder": normed,
        "transcoder_nogain": norm(before_mlp, mid, gain=False),
        "mlp": out,
        "res": mid + out,
    } | ({"mlp_raw": raw} if gemma else {})


def _layer_norm(module, x, *, gain=True):
    bare = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return bare * module.weight + module.bias if gain else bare


def _gpt2_by_hand(block, x):
    def linear(module, x):
        return x @ module.weight + module.bias  # Conv1D: [in, out]

    heads = linear(block.attn.c_attn, _layer_norm(block.ln_1, x))[..., 64:]
    added = linear(block.attn.c_proj, heads)
    mid = x + added
    normed = _layer_norm(block.ln_2, mid)
    out = linear(block.mlp.c_proj, F.gelu(linear(block.mlp.c_fc, normed), approximate="tanh"))
    bare = _layer_norm(block.ln_2, mid, gain=False)
    found = {"att": heads, "att_out": added, "mid": mid, "transcoder": normed, "transcoder_nogain": bare}
    return found | {"mlp": out, "res": mid + out}


def _neox_by_hand(block, x, *, parallel):
    def linear(module, x):
        return F.linear(x, module.weight, module.bias)

    mixed = linear(block.attention.query_key_value, _layer_norm(block.input_layernorm, x))
    heads = mixed.reshape(1, 1, 4, 3, 8)[..., 2, :].flatten(2)  # query, key and value of a head lie side by side
    added = linear(block.attention.dense, heads)
    read = x if parallel else x + added
    normed = _layer_norm(block.post_attention_layernorm, read)
    out = linear(block.mlp.dense_4h_to_h, F.gelu(linear(block.mlp.dense_h_to_4h, normed)))
    bare = _layer_norm(block.post_attention_layernorm, read, gain=False)
    found = {"att": heads, "att_out": added, "transcoder": normed, "transcoder_nogain": bare}
    return found | {"mlp": out, "res": x + added + out} | ({} if parallel else {"mid": read})
