"""Edits against their formulas, written out slowly in float64, and against blocks recomputed by hand: what each one
changes, where, and that nothing of it stays. Generation is test_generation.py's.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import gemscope as gs
from by_hand import (
    GEMMA,
    TEXT,
    block,
    blockwise,
    decoded64,
    features64,
    hooks,
    kinds_of,
    mlp_norm,
    model_of,
    output_by_hand,
    random_sae,
    undecided,
)
from edited import (
    FEATURES,
    IDS,
    NUMBERS,
    SETTERS,
    Boom,
    after,
    arriving,
    assert_moved,
    every_family,
    few,
    made,
    moved64,
    perfect,
    sae_of,
    some,
)
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import SiteNotFound
from gemscope.features.sae import SAE
from gemscope.testing import D_MODEL, tiny_model

# --- nothing --------------------------------------------------------------------------------------------------------


@every_family
@few
@given(IDS, FEATURES)
def test_an_empty_edit_changes_no_bit_of_the_logits(family: str, ids: list[int], feature: int) -> None:
    model = model_of(family)
    before = model.logits(ids)
    for kind in kinds_of(family):
        sae = sae_of(family, f"1.{kind}")
        alone = [
            gs.Steer(sae, feature, 0.0),
            gs.Scale(sae, feature, 1.0),
            gs.Splice(sae, error=True),
            gs.Project(sae, feature, keep=1.0),
            gs.Clamp(sae, feature, 3.0, at=(99,)),
            gs.Steer(sae, feature, 0.0, every_token=True),
        ]
        for edits in ([], alone[:4], *([edit] for edit in (alone if kind in {"mid", "res"} else []))):
            with model.edited(*edits):
                assert torch.equal(model.logits(ids), before), (kind, edits)


@every_family
@few
@given(IDS)
def test_splicing_a_perfect_sae_changes_nothing(family: str, ids: list[int]) -> None:
    model = model_of(family)
    before = model.logits(ids)
    for kind in kinds_of(family):
        sae = perfect(model.width(f"1.{kind}"), f"1.{kind}")
        with model.edited(gs.Splice(sae, error=False, every_token=True)):
            torch.testing.assert_close(model.logits(ids), before, rtol=1e-5, atol=2e-5)


@every_family
def test_leaving_the_block_leaves_no_trace(family: str) -> None:
    model = tiny_model(family)
    before, state = model.logits(TEXT), {name: value.clone() for name, value in model.hf.state_dict().items()}
    for kind in kinds_of(family):
        sae = sae_of(family, f"1.{kind}")
        with model.edited(gs.Clamp(sae, 3, 9.0), gs.Splice(sae, error=False)) as same:
            assert same is model
            assert hooks(model) > 0
            assert not torch.equal(model.logits(TEXT), before)
        assert hooks(model) == 0
        assert torch.equal(model.logits(TEXT), before)
    assert not any("forward" in vars(module) for module in model.hf.modules())
    assert all(torch.equal(state[name], value) for name, value in model.hf.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_an_exception_inside_leaves_no_trace_either(family: str) -> None:
    model = tiny_model(family)
    before = model.logits(TEXT)
    edit = gs.Clamp(sae_of(family, "1.res"), 3, 9.0)

    def fails(*_: object) -> None:
        raise Boom

    with pytest.raises(Boom), model.edited(edit):  # noqa: PT012
        model.logits(TEXT)
        raise Boom
    broken = block(model, 2).register_forward_hook(fails)
    with model.edited(edit):
        with pytest.raises(Boom):
            model.logits(TEXT)
        broken.remove()
        edited = model.logits(TEXT)  # the pass that broke off has left nothing for the next one
    with model.edited(edit):
        assert torch.equal(model.logits(TEXT), edited)
    with pytest.raises(SiteNotFound), model.edited(edit, gs.Steer.along("9.res", torch.ones(D_MODEL))):
        pass
    with pytest.raises(Boom), model.edited(edit), model.edited(edit):
        raise Boom
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


# --- by the formula -------------------------------------------------------------------------------------------------


@every_family
@few
@given(IDS, FEATURES, NUMBERS)
def test_clamp_moves_x_by_the_difference_at_every_site(family: str, ids: list[int], feature: int, to: float) -> None:
    model = model_of(family)
    for kind in kinds_of(family):
        site = f"1.{kind}"
        sae = sae_of(family, site)
        x, counted = arriving(model, ids, site)
        assume(not undecided(sae, x))
        now = after(model, ids, site, gs.Clamp(sae, feature, to))
        assert_moved(x, now, moved64("Clamp", sae, feature, to, x), counted)


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("kind", ["Steer", *SETTERS])
@some
@given(IDS, FEATURES, NUMBERS)
def test_every_edit_follows_its_formula(kind: str, gate: str, ids: list[int], feature: int, by: float) -> None:
    model = model_of("llama")
    sae = sae_of("llama", "1.res", gate)
    x, counted = arriving(model, ids, "1.res")
    assume(not undecided(sae, x))
    now = after(model, ids, "1.res", made(kind, sae, feature, by))
    assert_moved(x, now, moved64(kind, sae, feature, by, x), counted)


@some
@given(IDS, NUMBERS, st.integers(0, 99))
def test_a_direction_of_ones_own_needs_no_sae(ids: list[int], by: float, seed: int) -> None:
    model = model_of("gemma2")
    v = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    x, counted = arriving(model, ids, "1.mlp")
    along = (x.double() @ v.double() / v.double().pow(2).sum())[..., None]
    for edit, change in (
        (gs.Steer.along("1.mlp", v, by), by * v.double().expand_as(x)),
        (gs.Steer.along(Site(1, "mlp"), v), v.double().expand_as(x)),
        (gs.Project.along("1.mlp", v), -along * v.double()),
        (gs.Project.along("1.mlp", v, keep=by), (by - 1) * along * v.double()),
        (gs.Cap.along("1.mlp", v, high=0.01), (along.clamp(max=0.01) - along) * v.double()),
        (gs.Cap.along("1.mlp", v, low=0.01), (along.clamp(min=0.01) - along) * v.double()),
    ):
        assert_moved(x, after(model, ids, "1.mlp", edit), change, counted)


@some
@given(IDS)
def test_projecting_out_leaves_nothing_along_the_direction(ids: list[int]) -> None:
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    _, counted = arriving(model, ids, "1.res")
    now = after(model, ids, "1.res", gs.Project(sae, 5))
    d = sae.direction(5)
    assert (now[counted] @ (d / d.norm())).abs().max() < 1e-5 if counted.any() else True
    capped = after(model, ids, "1.res", gs.Cap(sae, 5, low=0.25, high=0.25))
    torch.testing.assert_close(capped[counted] @ d / (d @ d), torch.full((int(counted.sum()),), 0.25))


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "topk"])
def test_splice_without_the_error_is_the_reconstruction(gate: str) -> None:
    model, sae = model_of("qwen3"), sae_of("qwen3", "1.res", gate)
    x, counted = arriving(model, TEXT, "1.res")
    assert not undecided(sae, x)
    now = after(model, TEXT, "1.res", gs.Splice(sae, error=False))
    assert_moved(x, now, decoded64(sae, features64(sae, x)) - x.double(), counted)
    assert torch.equal(after(model, TEXT, "1.res", gs.Splice(sae, error=True)), x)


@some
@given(IDS, FEATURES, FEATURES, NUMBERS, NUMBERS)
def test_features_edited_beside_a_splice_are_decoded_as_edited(
    ids: list[int], one: int, other: int, to: float, by: float
) -> None:
    assume(one != other)
    model, sae = model_of("gemma2"), sae_of("gemma2", "1.res")
    x, counted = arriving(model, ids, "1.res")
    assume(not undecided(sae, x))
    features = features64(sae, x)
    features[..., one], features[..., other] = to, features[..., other] * by
    edits = [gs.Clamp(sae, one, to), gs.Scale(sae, other, by)]
    spliced = decoded64(sae, features)
    now = after(model, ids, "1.res", gs.Splice(sae, error=False), *edits)
    assert_moved(x, now, spliced - x.double(), counted)
    kept = x.double() - decoded64(sae, features64(sae, x))  # the error, of what arrived
    now = after(model, ids, "1.res", *edits, gs.Splice(sae, error=True))
    assert_moved(x, now, spliced + kept - x.double(), counted)


# --- where it goes --------------------------------------------------------------------------------------------------


@every_family
def test_what_is_written_reaches_the_rest_of_the_model(family: str) -> None:
    """At `mid` above all: the stream itself has to move, not only what the norm in front of the MLP reads."""
    model = model_of(family)
    clean = blockwise(model, 1, TEXT)
    for kind in kinds_of(family):
        sae = sae_of(family, f"1.{kind}")
        _, counted = arriving(model, TEXT, f"1.{kind}")
        change = moved64("Clamp", sae, 7, 6.0, clean[kind]) * counted[..., None]
        expected = output_by_hand(model, 1, clean, kind, clean[kind] + change.float())
        with model.edited(gs.Clamp(sae, 7, 6.0)):
            found = model.capture(TEXT, ["0.res", "1.res"], logits=True)
        assert torch.equal(found["0.res"].values, clean["before"]), kind
        torch.testing.assert_close(found["1.res"].values, expected, atol=3e-5, rtol=1e-5, msg=lambda m: f"{kind}: {m}")  # noqa: B023
        # From there on the model is its own: the same as with the block's output given to it.
        handle = block(model, 1).register_forward_hook(lambda _, __, out: _put(out, expected))  # noqa: B023
        try:
            torch.testing.assert_close(found.logits, model.logits(TEXT), atol=1e-4, rtol=1e-4)
        finally:
            handle.remove()


def _put(output: object, value: Tensor) -> object:
    return (value, *output[1:]) if isinstance(output, tuple) else value


@every_family
def test_edits_at_several_sites_from_several_saes_act_together(family: str) -> None:
    model = model_of(family)
    first, second = sae_of(family, "0.res"), sae_of(family, "2.mlp", "relu")
    with model.edited(gs.Clamp(first, 2, 5.0)):
        x, counted = arriving(model, TEXT, "2.mlp")  # what arrives there is changed already
    assert not torch.equal(x, arriving(model, TEXT, "2.mlp")[0])
    now = after(model, TEXT, "2.mlp", gs.Scale(second, 4, -3.0), gs.Clamp(first, 2, 5.0))
    assert_moved(x, now, moved64("Scale", second, 4, -3.0, x), counted)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_hf_itself_is_edited_too(family: str) -> None:
    model, sae = model_of(family), sae_of(family, "1.res")
    ids = model.tokens(TEXT).ids
    with model.edited(gs.Clamp(sae, 3, 9.0)):
        assert torch.equal(model.hf(input_ids=ids).logits, model.logits(TEXT))
        assert torch.equal(model.hf(ids).logits, model.logits(TEXT))
        captured = model.capture(TEXT, ["2.res"], logits=True)
        assert torch.equal(captured.logits, model.logits(TEXT))


# --- several --------------------------------------------------------------------------------------------------------


@few
@given(IDS, FEATURES, FEATURES, NUMBERS, NUMBERS)
def test_edits_of_one_block_add_up_whatever_their_order(
    ids: list[int], one: int, other: int, to: float, by: float
) -> None:
    assume(one != other)
    model = model_of("gemma2")
    for kind in kinds_of("gemma2"):
        site = f"1.{kind}"
        sae, second = sae_of("gemma2", site), sae_of("gemma2", site, "relu")
        x, counted = arriving(model, ids, site)
        assume(not undecided(sae, x) and not undecided(second, x))
        edits = [gs.Clamp(sae, one, to), gs.AtLeast(second, other, 2.0), gs.Project(sae, other, by)]
        change = (
            moved64("Clamp", sae, one, to, x)
            + moved64("AtLeast", second, other, 2.0, x)
            + moved64("Project", sae, other, by, x)
        )
        forwards = after(model, ids, site, *edits)
        assert_moved(x, forwards, change, counted)
        torch.testing.assert_close(after(model, ids, site, *edits[::-1]), forwards, rtol=1e-6, atol=1e-5)
        assert torch.equal(after(model, ids, site, *edits[:2]), after(model, ids, site, *edits[1::-1]))


@few
@given(IDS, FEATURES, NUMBERS)
def test_blocks_within_blocks_follow_one_another(ids: list[int], feature: int, to: float) -> None:
    model = model_of("llama")
    for kind in kinds_of("llama"):
        site = f"1.{kind}"
        sae = sae_of("llama", site)
        x, counted = arriving(model, ids, site)
        outer, inner = gs.Steer(sae, (feature + 1) % 48, 4.0), gs.Clamp(sae, feature, to)
        with model.edited(outer):
            between, again = arriving(model, ids, site)
            with model.edited(inner):
                both = model.capture(ids, [site])[site].values
            assert torch.equal(model.capture(ids, [site])[site].values, between)
        assume(not undecided(sae, between) and torch.equal(counted, again))
        assert_moved(x, between, moved64("Steer", sae, (feature + 1) % 48, 4.0, x), counted)
        assert_moved(between, both, moved64("Clamp", sae, feature, to, between), counted)
        assert torch.equal(model.capture(ids, [site])[site].values, x)


# --- transcoders ----------------------------------------------------------------------------------------------------


class _InPlaceOfMLP(nn.Module):
    def __init__(self, transcoder: SAE) -> None:
        super().__init__()
        self.transcoder = transcoder

    def forward(self, x: Tensor) -> Tensor:
        return decoded64(self.transcoder, features64(self.transcoder, x), x).float()


class _WithoutGain(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = getattr(norm, "eps", None) or norm.variance_epsilon
        self.centred = isinstance(norm, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()


@every_family
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("reads", ["transcoder", "transcoder_nogain"])
def test_replace_is_a_model_whose_mlp_is_the_transcoder(family: str, reads: str, skip: bool) -> None:
    model = model_of(family)
    transcoder = random_sae(model, f"1.{reads}", site_out="1.mlp", skip=skip)
    rebuilt = LanguageModel(copy.deepcopy(model.hf), model.tokenizer, name="rebuilt")
    rebuilt.name = model.name
    this = block(rebuilt, 1)
    this.mlp = _InPlaceOfMLP(transcoder)
    if reads == "transcoder_nogain":
        setattr(this, mlp_norm(family), _WithoutGain(getattr(this, mlp_norm(family))))
    if family in GEMMA:
        this.post_feedforward_layernorm = nn.Identity()
    expected = rebuilt.logits(TEXT)
    with model.edited(gs.Replace(transcoder, every_token=True)):
        torch.testing.assert_close(model.logits(TEXT), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, model.logits(TEXT), atol=1e-2)


@every_family
def test_replace_leaves_alone_what_no_transcoder_was_trained_on(family: str) -> None:
    model = model_of(family)
    transcoder = random_sae(model, "1.transcoder", site_out="1.mlp")
    captured = model.capture(TEXT, ["1.transcoder", "1.mlp"])
    read, out = captured["1.transcoder"], captured["1.mlp"].values
    expected = decoded64(transcoder, features64(transcoder, read.values), read.values)
    now = after(model, TEXT, "1.mlp", gs.Replace(transcoder))
    assert not read.counted[0, 0]
    assert_moved(out, now, expected - out.double(), captured["1.mlp"].counted)


@pytest.mark.parametrize("reads", ["transcoder", "transcoder_nogain"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_a_transcoders_feature_is_read_where_it_reads_and_written_where_it_writes(family: str, reads: str) -> None:
    model = model_of(family)
    transcoder = random_sae(model, f"1.{reads}", site_out="1.mlp")
    captured = model.capture(TEXT, [f"1.{reads}", "1.mlp"])
    f = features64(transcoder, captured[f"1.{reads}"].values)[..., 7, None]
    edit = gs.Clamp(transcoder, 7, 5.0)
    assert (str(edit.reads), str(edit.site)) == (f"1.{reads}", "1.mlp")
    out = captured["1.mlp"]
    now = after(model, TEXT, "1.mlp", edit)
    assert_moved(out.values, now, (5.0 - f) * transcoder.W_dec[7].double(), out.counted)
