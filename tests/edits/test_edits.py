"""Edits against their formulas, written out slowly in float64, and against blocks recomputed by hand: what each one
changes, where, and that nothing of it stays. Generation is test_generation.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gemscope as gs
from by_hand import (
    GEMMA,
    MAIN,
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
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import GemscopeError, InputError, Mismatch, NotFinite, SiteNotFound
from gemscope.features.logit_lens import convention, logit_effects
from gemscope.features.mapped import Mapped
from gemscope.features.sae import SAE
from gemscope.testing import D_MODEL, identity_sae, tiny_model

every_family = pytest.mark.parametrize("family", MAIN)
few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
some = settings(few, max_examples=15)

IDS = st.lists(st.integers(10, 300), min_size=2, max_size=12)
FEATURES = st.integers(0, 47)
NUMBERS = st.floats(-8, 8, width=32)

SETTERS = ("Clamp", "Scale", "Ablate", "AtLeast", "Project", "Cap")


@cache
def sae_of(family: str, site: str, gate: str = "jumprelu") -> SAE:
    return random_sae(model_of(family), site, gate=gate, **({"k": 6} if gate == "topk" else {}))


perfect = cache(identity_sae)


def arriving(model: LanguageModel, text: object, site: str) -> tuple[Tensor, Tensor]:
    """What flows through a site, and which of its tokens count."""
    acts = model.capture(text, [site])[site]
    return acts.values, acts.counted


def after(model: LanguageModel, text: object, site: str, *edits: Edit, **options: object) -> Tensor:
    with model.edited(*edits, **options):
        return model.capture(text, [site])[site].values


def made(kind: str, sae: SAE, feature: int, by: float, **options: object) -> Edit:
    """An edit of each kind that acts on one feature."""
    if kind == "Ablate":
        return gs.Ablate(sae, feature, **options)
    if kind == "Cap":
        return gs.Cap(sae, feature, low=-abs(by) / 4, high=abs(by) / 8, **options)
    return getattr(gs, kind)(sae, feature, by, **options)


def moved64(kind: str, sae: SAE, feature: int, by: float, x: Tensor) -> Tensor:
    """What such an edit adds, by its formula in docs/edits.md."""
    x, d = x.double(), sae.W_dec[feature].double()
    f = features64(sae, x)[..., feature, None]
    along = (x @ d / (d @ d))[..., None]  # x's coordinate along d, in multiples of d
    return {
        "Steer": lambda: torch.full_like(f, by) * d,
        "Clamp": lambda: (by - f) * d,
        "Scale": lambda: (by - 1) * f * d,
        "Ablate": lambda: -f * d,
        "AtLeast": lambda: (by - f).clamp(min=0) * d,
        "Project": lambda: (by - 1) * (x @ (d / d.norm()))[..., None] * (d / d.norm()),
        "Cap": lambda: (along.clamp(-abs(by) / 4, abs(by) / 8) - along) * d,
    }[kind]()


def assert_moved(before: Tensor, now: Tensor, by: Tensor, where: Tensor) -> None:
    """To float32's rounding where it acts; bit by bit elsewhere."""
    assert torch.equal(now[~where], before[~where])
    torch.testing.assert_close(now[where].double(), (before.double() + by)[where], rtol=2e-6, atol=2e-5)


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


class Boom(Exception):
    pass


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


# --- on which tokens ------------------------------------------------------------------------------------------------


def touched(model: LanguageModel, text: object, site: str, edit: Edit, **options: object) -> list[list[bool]]:
    before = model.capture(text, [site])[site].values
    return (after(model, text, site, edit, **options) != before).any(-1).tolist()


def nudge(site: str = "1.res", **options: object) -> Edit:
    return gs.Steer.along(site, torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5)), 3.0, **options)


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral"])
def test_the_tokens_that_count_are_those_that_are_edited(family: str) -> None:
    model = model_of(family)
    eos = model.tokenizer.eos_token
    tokens = model.tokens(["the thing and" + eos + "the other", "it was"])
    for site in ("0.res", "1.mlp", "2.mid"):
        counted = model.capture(tokens, [site])[site].counted
        assert touched(model, tokens, site, nudge(site)) == counted.tolist()
        assert touched(model, tokens, site, nudge(site, every_token=True)) == tokens.real.tolist()
        assert not counted[0, 0]
        assert counted.sum() < tokens.real.sum() - 2


def test_positions_are_counted_in_the_row_and_from_its_end() -> None:
    model = model_of("llama")
    T, F = True, False
    for side in ("left", "right"):
        tokens = model.tokens(["a b c", "a b c d e"], side=side)  # 5 and 9 tokens
        real = tokens.real
        assert real.sum(-1).tolist() == [5, 9]
        for at, short, long in (
            ((1,), [F, T, F, F, F], [F, T, *[F] * 7]),
            ((1, 3), [F, T, F, T, F], [F, T, F, T, *[F] * 5]),
            ((-1,), [F, F, F, F, T], [*[F] * 8, T]),
            ((-5, -2), [F, F, F, T, F], [F, F, F, F, T, F, F, T, F]),
            ((7,), [F] * 5, [*[F] * 7, T, F]),
            ((0,), [F] * 5, [F] * 9),  # the first of a row is left alone
        ):
            found = touched(model, tokens, "1.res", nudge(at=at))
            rows = [[hit for hit, there in zip(row, is_real, strict=True) if there]
                    for row, is_real in zip(found, real.tolist(), strict=True)]  # fmt: skip
            assert rows == [short, long], (side, at)
        found = touched(model, tokens, "1.res", nudge(at=(0,), every_token=True))
        assert [sum(row) for row in found] == [1, 1]
        assert [row.index(True) for row in found] == [int(row.int().argmax()) for row in real]


def test_a_mask_is_taken_exactly_as_it_is() -> None:
    model = model_of("gemma2")
    tokens = model.tokens(["the thing", "it"])
    mask = torch.rand(tokens.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 0] = True  # BOS
    assert touched(model, tokens, "1.res", nudge(at=mask)) == mask.tolist()


@given(st.sets(st.integers(0, 3)))
@settings(few, max_examples=10)
def test_rows_that_are_not_named_are_left_alone(rows: set[int]) -> None:
    model = model_of("qwen2")
    texts = ["the thing and", "it was a morning", "the other", "and the theory of it"]
    clean = model.logits(texts)
    with model.edited(nudge()):
        whole = model.logits(texts)
    with model.edited(nudge(), rows=sorted(rows)):
        part = model.logits(texts)
    for row in range(4):
        assert torch.equal(part[row], (whole if row in rows else clean)[row])
    assert not torch.equal(whole, clean)


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_prompt_and_generated_are_told_apart_by_what_the_caller_says(family: str) -> None:
    model = model_of(family)
    tokens = model.tokens(TEXT)
    length = tokens.ids.shape[-1]
    before = model.logits(tokens)
    with model.edited(nudge(at="generated", every_token=True)):
        assert torch.equal(model.logits(tokens), before)  # without a word all is prompt
        after_five = model.logits(tokens, prompt=5)
    assert torch.equal(after_five[:, :5], before[:, :5])
    assert not torch.isclose(after_five[:, 5:], before[:, 5:]).all(-1).any()
    mask = (torch.arange(length) < 5)[None]
    with model.edited(nudge(at="prompt", every_token=True)):
        first_five = model.logits(tokens, prompt=5)
    with model.edited(nudge(at=mask)):
        assert torch.equal(model.logits(tokens), first_five)
    with model.edited(nudge(at=~mask)):
        assert torch.equal(model.logits(tokens), after_five)


# --- to first order, and cut short ------------------------------------------------------------------------------------


@every_family
def test_the_gradient_at_a_site_is_what_a_small_change_there_does(family: str) -> None:
    """Through all that reads the site: at `mid` the MLP and the stream both."""
    model = model_of(family)
    text, token = "the thing and the other", 70
    for kind in kinds_of(family):
        site = f"1.{kind}"
        acts, gradient = model.gradient(text, site, lambda logits: logits[0, -1, token])
        assert torch.equal(acts.values, arriving(model, text, site)[0])
        v = torch.randn(acts.d, generator=torch.Generator().manual_seed(1))
        step = 0.02
        ends = []
        for by in (step, -step):
            with model.edited(gs.Steer.along(site, v, by, at=(2,))):
                ends.append(model.logits(text)[0, -1, token].double())
        assert (gradient[0, 2] @ v).item() == pytest.approx(
            ((ends[0] - ends[1]) / (2 * step)).item(), abs=2e-3, rel=5e-3
        )
    assert hooks(model) == 0
    assert torch.is_grad_enabled()


def test_a_watched_pass_ends_when_the_watch_says_so() -> None:
    model = tiny_model("gemma3")
    before, calls = model.logits(TEXT), []

    def check() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Boom

    with pytest.raises(Boom), model.edited(nudge()), model.watched(check):
        model.generate(TEXT, max_new_tokens=20)
    assert len(calls) == 5  # in the second block of the second pass
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


# --- weights as they come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_sae_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = model_of("llama")
    sae = random_sae(model).to(dtype)
    same = random_sae(model)
    same.load_state_dict({name: value.float() for name, value in sae.state_dict().items()})
    x, counted = arriving(model, TEXT, "1.res")
    assert not undecided(same, x)
    for kind in SETTERS:
        now = after(model, TEXT, "1.res", made(kind, sae, 9, 3.0))
        assert now.dtype == torch.float32
        assert_moved(x, now, moved64(kind, same, 9, 3.0, x), counted)
    now = after(model, TEXT, "1.res", gs.Splice(sae, error=False))
    assert_moved(x, now, decoded64(same, features64(same, x)) - x.double(), counted)


def test_an_sae_that_lies_in_a_file_is_read_from_there(tmp_path: object) -> None:
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    gs.save_sae(sae, tmp_path / "sae")
    mapped = gs.load_sae(tmp_path / "sae")
    assert Mapped.of(mapped.W_dec)
    for kind in SETTERS:
        from_file, from_memory = (after(model, TEXT, "1.res", made(kind, one, 9, 3.0)) for one in (mapped, sae))
        torch.testing.assert_close(from_file, from_memory, rtol=2e-6, atol=2e-6)


# --- units ----------------------------------------------------------------------------------------------------------


def test_whichever_unit_is_given_all_three_are_told() -> None:
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    units = gs.Units.measured(model, sae, gs.Corpus.of([TEXT, "and the other thing was in the theory"]), tokens=100)
    corpus = [model.capture(text, ["1.res"])["1.res"] for text in (TEXT, "and the other thing was in the theory")]
    assert units.tokens > 0
    x = torch.cat([acts.rows for acts in corpus])
    peak = features64(sae, x).amax(0)
    feature = int(peak.argmax())
    length = sae.direction(feature).norm().item()
    for strength in (units.max(feature, 2.0), units.raw(feature, 2 * units.maximum(feature)),
                     units.norm(feature, 2 * units.maximum(feature) * length / units.median_norm)):  # fmt: skip
        assert strength.raw == pytest.approx(2 * units.maximum(feature))
        assert strength.of_max == pytest.approx(2.0)
        assert strength.of_norm == pytest.approx(strength.raw * length / units.median_norm)
        assert all(word in str(strength) for word in ("raw", "× max", "× median norm"))
        edit = gs.Steer(sae, feature, strength)
        assert edit.strength == strength
        assert torch.equal(
            after(model, TEXT, "1.res", edit), after(model, TEXT, "1.res", gs.Steer(sae, feature, strength.raw))
        )
        assert "\n" not in str(edit)
    assert gs.Steer(sae, feature, 3.0).strength.raw == 3.0


def test_measured_units_are_the_maxima_and_the_median_norm_of_what_counts() -> None:
    model, sae = model_of("gemma2"), sae_of("gemma2", "1.res")
    corpus = gs.Corpus.of([TEXT * 3, "and the other thing was in the theory " * 4])
    units = gs.Units.measured(model, sae, corpus, tokens=1000)
    rows = [acts for tokens in model.rows(corpus, length=128) for acts in [model.capture(tokens, ["1.res"])["1.res"]]]
    x = torch.cat([acts.rows for acts in rows])
    assert units.tokens == len(x)
    assert units.median_norm == pytest.approx(x.norm(dim=-1).median().item(), rel=0.02)
    peak = features64(sae, x).amax(0)
    for feature in range(0, 48, 5):
        assert units.maximum(feature) == pytest.approx(peak[feature].item(), rel=1e-4)


# --- the pitfalls ---------------------------------------------------------------------------------------------------
# One test for each line of docs/edits.md's list; number 6, the KV cache, is in test_generation.py.


def test_pitfall_1_the_error_term_is_of_what_arrived_not_of_what_was_edited() -> None:
    """Computed after the edit it would take the edit back, and the output would never change."""
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    x, counted = arriving(model, TEXT, "1.res")
    now = after(model, TEXT, "1.res", gs.Splice(sae, error=True), gs.Clamp(sae, 11, 7.0))
    assert_moved(x, now, moved64("Clamp", sae, 11, 7.0, x), counted)
    assert (now - x)[counted].norm(dim=-1).min() > 0.1
    spliced = after(model, TEXT, "1.res", gs.Splice(sae, error=False), gs.Clamp(sae, 11, 7.0))
    assert not torch.allclose(spliced[counted], now[counted], atol=0.1)


def test_pitfall_2_bos_and_attention_sinks_are_left_alone() -> None:
    model = tiny_model("gemma2", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 1e4
    ids = model.tokens("and a thing in the other morning, it was").ids
    sink = (ids == token)[0]
    assert sink.sum() >= 1
    ordinary = ~sink
    ordinary[0] = False
    edit = gs.Clamp(sae_of("gemma2", "0.res"), 3, 9.0)
    hit = torch.tensor(touched(model, ids, "0.res", edit))[0]
    assert not hit[sink].any()
    assert not hit[0]
    assert hit[ordinary].all()
    everywhere = gs.Steer.along("0.res", torch.full((D_MODEL,), 1e6), every_token=True)
    assert torch.tensor(touched(model, ids, "0.res", everywhere)).all()


def test_pitfall_2_a_sink_is_one_of_its_row_whatever_else_is_in_the_batch() -> None:
    model = tiny_model("llama", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 300
    texts = ["it was a theory and the other", "the the the the the the the", "and so it was"]
    edit = nudge("0.res")
    together = touched(model, model.tokens(texts), "0.res", edit)
    for row, text in zip(together, texts, strict=True):
        alone = touched(model, text, "0.res", edit)[0]
        assert row[: len(alone)] == alone


def test_pitfall_3_units_are_the_same_however_norms_were_folded() -> None:
    """Decoder rows of length one and activations as large, or the other way round: the same SAE, the same edit."""
    model, folded = model_of("llama"), random_sae(model_of("llama"), gate="relu")
    plain = random_sae(model, gate="relu")
    lengths = plain.W_dec.norm(dim=-1)
    folded.W_dec /= lengths[:, None]
    folded.W_enc *= lengths
    folded.b_enc *= lengths
    torch.testing.assert_close(plain(torch.ones(3, D_MODEL)), folded(torch.ones(3, D_MODEL)))
    corpus = gs.Corpus.of([TEXT])
    units = [gs.Units.measured(model, sae, corpus, tokens=50) for sae in (plain, folded)]
    feature = max(range(48), key=units[1].maximum)
    strengths = [each.max(feature, 2.0) for each in units]
    assert strengths[0].raw != pytest.approx(strengths[1].raw, rel=0.05)  # raw units differ, and say so
    assert strengths[0].of_norm == pytest.approx(strengths[1].of_norm, rel=1e-5)
    for edit in (gs.Steer, gs.Clamp, gs.AtLeast):
        one, other = (
            after(model, TEXT, "1.res", edit(sae, feature, strength))
            for sae, strength in zip((plain, folded), strengths, strict=True)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@every_family
def test_pitfall_4_edits_act_on_the_models_own_activations(family: str) -> None:
    """Not on a version of the model with folded norms and centred weights: what transformers calls the hidden states,
    plus the change, and nothing else."""
    model, sae = model_of(family), sae_of(family, "0.res")
    ids = model.tokens(TEXT).ids
    _, counted = arriving(model, TEXT, "0.res")
    clean = tiny_model(family).hf(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert torch.equal(incoming(model, ids)[1], clean)
    with model.edited(gs.Clamp(sae, 3, 9.0)):
        edited = incoming(model, ids)[1]
    assert_moved(clean, edited, moved64("Clamp", sae, 3, 9.0, clean), counted)


def incoming(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """What comes into each block in the last pass, read with a hook of torch's own: where an edit lies below the middle
    of the model, a pass without it comes before, to tell sinks."""
    seen: list[Tensor] = []
    handles = [
        block(model, layer).register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].clone()), with_kwargs=True
        )
        for layer in range(3)
    ]
    model.hf(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen[-3:]


@every_family
def test_pitfall_5_a_block_is_counted_from_0_and_res_is_behind_it(family: str) -> None:
    model = model_of(family)
    ids = model.tokens(TEXT).ids
    clean = incoming(model, ids)
    for site, same in (("0.res", [True, False, False]), ("1.res", [True, True, False]), ("2.res", [True] * 3)):
        with model.edited(nudge(site)):
            edited = incoming(model, ids)
            assert not torch.equal(model.logits(ids), tiny_model(family).logits(ids))
        assert [torch.equal(*pair) for pair in zip(clean, edited, strict=True)] == same


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_pitfall_7_a_small_change_to_a_large_residual_is_not_lost(family: str) -> None:
    """Added up in float32 and rounded once, whatever the model's number format."""
    model = tiny_model(family, dtype=torch.bfloat16)
    sae = random_sae(model)
    x, counted = arriving(model, TEXT, "1.res")
    assert x.dtype == torch.bfloat16
    v = torch.full((D_MODEL,), 0.011)
    now = after(model, TEXT, "1.res", gs.Steer.along("1.res", v, 0.7))
    assert torch.equal(now[counted], (x[counted].float() + 0.7 * v).bfloat16())
    # Two halves of a step add up to a whole one, though either alone rounds to nothing.
    shift = gs.Cap.along("1.res", torch.eye(D_MODEL)[0], low=256.0, high=256.0)  # coordinate 0 is 256: steps of 2
    step = torch.eye(D_MODEL)[0]
    with model.edited(shift):
        for edits, expected in (([0.75], 256.0), ([0.75, 0.75], 258.0)):
            with model.edited(*(gs.Steer.along("1.res", step, by) for by in edits)):
                found = model.capture(TEXT, ["1.res"])["1.res"].values[counted][:, 0]
            assert (found == expected).all()
    # And what a feature is, is computed from x as it is, in float32.
    assert not undecided(sae, x)
    f = features64(sae, x)[..., 9, None]
    expected = (x.double() + (6.0 - f) * sae.W_dec[9].double()).bfloat16()
    now = after(model, TEXT, "1.res", gs.Clamp(sae, 9, 6.0))
    assert (now == expected)[counted].double().mean() > 0.995
    torch.testing.assert_close(now[counted], expected[counted], rtol=2**-7, atol=0)


def test_pitfall_7_norms_do_not_overflow_in_half_precision() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    model.hf.model.embed_tokens.weight *= 3000  # norms near 17,000: their squares are beyond float16
    assert sum(touched(model, TEXT, "0.res", gs.Steer.along("0.res", torch.full((D_MODEL,), 512.0)))[0]) >= 10
    with pytest.raises(NotFinite, match="float16"), model.edited(gs.Steer.along("0.res", torch.full((D_MODEL,), 1e6))):
        model.logits(TEXT)


def test_pitfall_10_the_logit_lens_says_what_steering_does_up_to_the_final_norm() -> None:
    """Behind the last block, along what is orthogonal to x the final norm only divides: by x's root mean square."""
    model = model_of("llama")
    x = model.capture(TEXT, ["2.res"])["2.res"].values[0, -1].double()
    d = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d -= (d @ x) / (x @ x) * x
    sae = SAE(D_MODEL, 1, site="2.res")
    sae.W_dec.copy_(d[None])
    effects = next(iter(logit_effects(model, sae, k=3)))
    by = 0.02
    with model.edited(gs.Steer(sae, 0, by, at=(-1,))):
        up = model.logits(TEXT)[0, -1].double()
    with model.edited(gs.Steer(sae, 0, -by, at=(-1,))):
        down = model.logits(TEXT)[0, -1].double()
    change = (up - down) / (2 * by) * x.pow(2).mean().sqrt()
    used = len(model.tokenizer)
    change = change[:used] - change[:used].mean()
    top = change.topk(3)
    assert top.indices.tolist() == effects.promoted[0].tolist()
    torch.testing.assert_close(top.values.float(), effects.promoted_values[0], rtol=2e-3, atol=2e-3)
    assert "without a division by the final norm's scale" in convention(model, sae)


# --- what cannot be -------------------------------------------------------------------------------------------------


def _narrow() -> SAE:
    return SAE(D_MODEL + 1, 8, site="1.res")


def _dead() -> SAE:
    sae = random_sae(model_of("llama"))
    sae.W_dec[4] = 0
    return sae


def _sae() -> SAE:
    return sae_of("llama", "1.res")


def _transcoder() -> SAE:
    return random_sae(model_of("llama"), "1.transcoder", site_out="1.mlp")


_NAN, _INF = float("nan"), float("inf")

REFUSED: dict[str, tuple[Callable[[], object], type[GemscopeError], str]] = {
    "an unknown feature": (lambda: [gs.Clamp(_sae(), 48, 1.0)], InputError, "no feature 48: this SAE has features 0 to 47"),
    "a negative feature": (lambda: [gs.Steer(_sae(), -1, 1.0)], InputError, "no feature -1"),
    "an unknown feature to project": (lambda: [gs.Project(_sae(), 99)], InputError, "no feature 99"),
    "a strength of NaN": (lambda: [gs.Steer(_sae(), 3, _NAN)], InputError, "nan"),
    "a strength of inf": (lambda: [gs.Clamp(_sae(), 3, _INF)], InputError, "inf"),
    "a factor of NaN": (lambda: [gs.Scale(_sae(), 3, _NAN)], InputError, "nan"),
    "a floor of inf": (lambda: [gs.AtLeast(_sae(), 3, _INF)], InputError, "inf"),
    "a share of NaN": (lambda: [gs.Project(_sae(), 3, keep=_NAN)], InputError, "nan"),
    "a bound of NaN": (lambda: [gs.Cap(_sae(), 3, low=_NAN)], InputError, "nan"),
    "bounds that cross": (lambda: [gs.Cap(_sae(), 3, low=2.0, high=1.0)], InputError, "low"),
    "a vector with NaN": (lambda: [gs.Steer.along("1.res", torch.full((D_MODEL,), _NAN))], InputError, ""),
    "an SAE of another width": (lambda: [gs.Clamp(_narrow(), 3, 1.0)], Mismatch, "32"),
    "a splice of another width": (lambda: [gs.Splice(_narrow(), error=False)], Mismatch, "32"),
    "a vector of another width": (lambda: [gs.Steer.along("1.res", torch.ones(7))], Mismatch, "7"),
    "two splices at one site": (
        lambda: [gs.Splice(_sae(), error=True), gs.Splice(_dead(), error=False)], InputError, "1.res"),
    "two clamps of one feature": (
        lambda: [gs.Clamp(_sae(), 3, 1.0), gs.Clamp(_sae(), 3, 2.0)], InputError, "contradict"),
    "a clamp and an ablation of one feature": (
        lambda: [gs.Clamp(_sae(), 3, 1.0), gs.Ablate(_sae(), 3)], InputError, "contradict"),
    "a transcoder in Splice": (lambda: [gs.Splice(_transcoder(), error=False)], InputError, "Replace"),
    "an SAE in Replace": (lambda: [gs.Replace(_sae())], InputError, "Splice"),
    "a zero decoder row to project": (lambda: [gs.Project(_dead(), 4)], InputError, "zero"),
    "a zero decoder row to cap": (lambda: [gs.Cap(_dead(), 4, high=1.0)], InputError, "zero"),
    "a zero vector to project": (lambda: [gs.Project.along("1.res", torch.zeros(D_MODEL))], InputError, "zero"),
    "a site on the side": (
        lambda: [gs.Steer.along("1.transcoder_nogain", torch.ones(D_MODEL))], InputError, "cannot be edited"),
    "a layer that is not there": (lambda: [gs.Steer.along("7.res", torch.ones(D_MODEL))], SiteNotFound, "no layer 7"),
    "an SAE without a site": (lambda: [gs.Clamp(SAE(D_MODEL, 8), 3, 1.0)], InputError, "site"),
    "a mask of the wrong shape": (
        lambda: [gs.Clamp(_sae(), 3, 1.0, at=torch.ones(2, 3, dtype=torch.bool))], InputError, "shape (2, 3)"),
    "a mask that is none": (lambda: [gs.Clamp(_sae(), 3, 1.0, at=torch.ones(1, 5))], InputError, "at"),
    "a word that names no positions": (lambda: [gs.Clamp(_sae(), 3, 1.0, at="everywhere")], InputError, "everywhere"),
    "no edit at all": (lambda: [3.0], InputError, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_edited_gets_one_clear_line(unchecked: None, case: str) -> None:
    make, kind, says = REFUSED[case]
    model = model_of("llama")
    before = model.logits(TEXT)
    with pytest.raises(GemscopeError) as raised:
        with model.edited(*make()):
            model.logits(TEXT)
    assert isinstance(raised.value, kind), repr(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


@pytest.mark.parametrize("rows", [[5], [-1], [0, 2]])
def test_rows_that_the_batch_does_not_have_are_refused(unchecked: None, rows: list[int]) -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match="row") as raised:
        with model.edited(nudge(), rows=rows):
            model.logits(["the thing", "it"])
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0


def test_embeddings_in_the_place_of_ids_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match="input_ids"), model.edited(nudge()):
        model.hf(inputs_embeds=torch.zeros(1, 3, D_MODEL))


def test_every_edit_is_one_readable_line() -> None:
    sae = _sae()
    for edit in (
        gs.Steer(sae, 3, 2.0), gs.Clamp(sae, 3, 2.0), gs.Scale(sae, 3, 2.0), gs.Ablate(sae, 3), gs.AtLeast(sae, 3, 2.0),
        gs.Project(sae, 3), gs.Cap(sae, 3, high=1.0), gs.Splice(sae, error=True), gs.Splice(sae, error=False),
        gs.Replace(_transcoder()), nudge(), gs.Clamp(sae, 3, 2.0, at=(1, 2)), gs.Clamp(sae, 3, 2.0, at="generated"),
    ):  # fmt: skip
        line = str(edit)
        assert "\n" not in line
        assert 5 < len(line) < 160
        assert "1.res" in line or "1.mlp" in line
    assert "3" in str(gs.Clamp(sae, 3, 2.0))
    assert str(gs.Splice(sae, error=True)) != str(gs.Splice(sae, error=False))
    assert str(gs.Clamp(sae, 3, 2.0, at="generated")) != str(gs.Clamp(sae, 3, 2.0))


def test_an_sae_that_was_told_its_site_afterwards_can_be_acted_with() -> None:
    model, sae = tiny_model("llama"), identity_sae(32)
    later = gs.SAE(32, 64, gate="relu")
    later.load_state_dict(sae.state_dict())
    with pytest.raises(InputError, match="does not say where it reads"):
        gs.Clamp(later, 3, 4.0)
    later.site = sae.site
    for make in (lambda one: gs.Clamp(one, 3, 4.0), lambda one: gs.Steer(one, 3, 4.0), lambda one: gs.Ablate(one, 3)):
        with model.edited(make(sae)):
            expected = model.logits("the thing")
        with model.edited(make(later)):
            assert torch.equal(model.logits("the thing"), expected)
    clean = model.logits("the thing")
    with model.edited(gs.Splice(later, error=False)):
        assert torch.equal(model.logits("the thing"), clean)
