"""One pass through a model: what is read, which tokens count, when it stops, and that nothing of it stays."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from by_hand import MAIN
from gemscope.activations.editing import Edit
from gemscope.activations.hooks import reading
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, locate
from gemscope.edits.splice import Splice
from gemscope.edits.units import Units
from gemscope.errors import InputError, Mismatch, SiteNotFound
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.testing import identity_sae, planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.tokens import Tokens

SHORT, LONG = "and the thing", "The theory and the thing: it was a morning in the other country"
every_family = pytest.mark.parametrize("family", MAIN)


@cache
def model_of(family: str) -> LanguageModel:
    return tiny_model(family)


def hooks(model: LanguageModel) -> int:
    every = (
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        for module in model.hf.modules()
    )
    return sum(len(kind) for kinds in every for kind in kinds)


class Boom(Exception):
    pass


class Scale(Edit):
    """An edit: what flows through a site, times a number, on every token. Raises where the number is missing."""

    every_token = True

    def __init__(self, site: str, by: float | None) -> None:
        self.site = Site.parse(site)
        self.by = by

    def change(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        if self.by is None:
            raise Boom
        return x * self.by - x


# --- one pass -------------------------------------------------------------------------------------------------------


def test_sites_read_together_are_those_read_one_by_one():
    model = model_of("gemma2")
    names = ["embed", "0.res", "2.mlp", "1.att", "1.transcoder", "1.transcoder_nogain", "2.res", "0.mid", "1.mlp_raw"]
    together = model.capture(LONG, names)
    assert {str(site) for site in together} == set(names)
    assert len(together) == len(names)
    for name in names:
        alone = model.capture(LONG, name)[name]
        assert torch.equal(alone.values, together[name].values)
        assert alone.site == Site.parse(name)
        assert alone.d == model.width(name)
        assert alone.model == "tiny-gemma2"


def test_a_site_asked_for_twice_is_read_once():
    assert len(model_of("llama").capture(SHORT, ["1.res", Site(1, "res"), " 1.res"])) == 1


@every_family
def test_the_pass_ends_after_the_last_site(family):
    model = tiny_model(family)
    blocks = [model.hf.get_submodule(locate(model.hf, Site(layer, "res")).module) for layer in range(3)]
    ran = []
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    head = model.hf.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: ran.append("head"))

    model.capture(SHORT, ["embed"], every_token=True)
    assert ran == []
    model.capture(SHORT, ["0.mlp", "1.att"], every_token=True)
    assert ran == [0, 1]
    model.capture(SHORT, ["embed"])  # the first time the typical norm is measured too
    ran.clear()
    model.capture(SHORT, ["embed"])
    assert ran == [0, 1]  # as far as the middle, where sinks are told
    ran.clear()
    assert model.capture(SHORT, ["0.res"], logits=True).logits.shape[-1] == model.vocab
    assert ran == [0, 1, 2, "head"]


def test_logits_kept_with_the_activations_are_the_models_own():
    model = model_of("llama")
    captured = model.capture(LONG, ["1.res"], logits=True)
    assert torch.equal(captured.logits, model.logits(LONG))
    assert torch.equal(captured.logits, model.hf(input_ids=model.tokens(LONG).ids).logits)
    assert model.capture(LONG, ["1.res"]).logits is None


def test_a_capture_carries_no_gradient_and_wants_none():
    model = tiny_model("llama")
    model.hf.requires_grad_(True)
    captured = model.capture(SHORT, ["1.res"], logits=True)
    assert not captured["1.res"].values.requires_grad
    assert not captured.logits.requires_grad
    assert not model.logits(SHORT).requires_grad
    assert torch.is_grad_enabled()


@every_family
def test_no_hook_stays_behind(family):
    model = tiny_model(family)
    assert hooks(model) == 0
    model.capture(LONG, ["embed", "0.att", "1.res"])
    model.capture(LONG, ["2.transcoder_nogain"], logits=True)
    with model.edited(Scale("1.res", 0.5), Scale("1.mlp", 2.0)):
        assert hooks(model) == 5  # one for each, two that see each pass, one that tells sinks
        model.capture(LONG, ["2.res"])
        assert hooks(model) == 5
    assert hooks(model) == 0


def test_no_hook_stays_behind_when_something_raises_inside():
    model = tiny_model("gemma2")
    before = model.logits(SHORT)

    def fails(*_):
        raise Boom

    broken = model.hf.model.layers[1].mlp.register_forward_hook(fails)
    with pytest.raises(Boom):
        model.capture(SHORT, ["0.res", "2.res"])
    broken.remove()
    with pytest.raises(Boom), model.edited(Scale("1.res", None)):
        model.logits(SHORT)
    with pytest.raises(Boom), model.edited(Scale("1.res", 3.0)):
        raise Boom
    with pytest.raises(SiteNotFound):
        model.capture(SHORT, ["0.res", "9.res"])
    with pytest.raises(SiteNotFound), model.edited(Scale("0.res", 3.0), Scale("9.res", 3.0)):
        pass
    with pytest.raises(AttributeError):
        reading(
            model.hf, {1: locate(model.hf, Site(0, "res")), 2: type("Point", (), {"module": "none"})}, stop=True
        ).__enter__()
    assert hooks(model) == 0
    assert torch.equal(model.logits(SHORT), before)


def test_a_model_that_would_record_all_by_itself_is_left_as_it_was():
    """Such a model makes transformers 4 patch its modules, and a pass that ends early would leave them patched."""
    model = tiny_model("llama")
    model.hf.config.output_hidden_states = True
    model.capture(SHORT, ["0.res"])
    assert not any("forward" in vars(module) for module in model.hf.modules())
    assert hooks(model) == 0


# --- padding and what counts ----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_activation(family, side):
    model = model_of(family)
    names = ["embed", "0.att", "1.mlp", "2.res"]
    texts = [SHORT, LONG, "x"]
    tokens = model.tokens(texts, side=side)
    assert tokens.padded
    batch = model.capture(tokens, names, logits=True)
    for row, text in enumerate(texts):
        alone = model.capture(text, names, logits=True)
        real = tokens.real[row]
        for name in names:
            assert batch[name].values.isfinite().all()
            torch.testing.assert_close(batch[name].values[row][real], alone[name].values[0], atol=2e-5, rtol=1e-5)
            assert torch.equal(batch[name].tokens.real, tokens.real)
        torch.testing.assert_close(batch.logits[row][real], alone.logits[0], atol=2e-5, rtol=1e-5)


def test_special_tokens_the_first_position_and_padding_do_not_count():
    model = model_of("gemma2")
    acts = model.capture(["the thing", "it"], ["1.res"])["1.res"]
    words = [model.strings(row) for row in acts.tokens.ids.tolist()]
    assert words[0] == ["<bos>", "the", " ", "th", "ing"]
    assert acts.counted.tolist() == [[False, True, True, True, True], [False, True, True, False, False]]
    assert acts.rows.shape == (6, 32)
    assert torch.equal(acts.rows, acts.values[acts.counted])


def test_the_first_position_does_not_count_where_no_bos_is_added():
    acts = model_of("llama").capture("the<|endoftext|>thing", ["1.res"])["1.res"]
    assert acts.counted.tolist() == [[False, False, True, True]]  # the, <|endoftext|>, th, ing


def test_every_token_counts_all_but_padding():
    model = model_of("gemma2")
    for tokens in (
        ["the thing", "it"],
        model.tokens(["the thing", "it"]),
        model.tokens(["the thing", "it"], side="left"),
    ):
        acts = model.capture(tokens, ["1.res"], every_token=True)["1.res"]
        assert torch.equal(acts.counted, acts.tokens.real)
        assert acts.counted.sum() == 8


def test_a_model_in_float64_is_read_like_any_other():
    exact, usual = (
        tiny_model("gpt2", dtype=dtype).capture(LONG, ["1.res"])["1.res"] for dtype in (torch.float64, torch.float32)
    )
    assert exact.values.dtype == torch.float64
    assert torch.equal(exact.counted, usual.counted)
    torch.testing.assert_close(exact.values.float(), usual.values, atol=1e-4, rtol=0)
    model = tiny_model("gpt2", dtype=torch.float64)
    sae = identity_sae(32)
    assert Units.measured(model, sae, Corpus.of(LONG)).median_norm == pytest.approx(
        Units.measured(tiny_model("gpt2"), sae, Corpus.of(LONG)).median_norm, rel=1e-4
    )


def test_activations_go_where_they_are_asked_to():
    acts = model_of("llama").capture(SHORT, ["1.res"], device="meta", every_token=True)["1.res"]
    assert acts.values.device.type == acts.counted.device.type == "meta"


@pytest.mark.parametrize("sites", [[], ()])
def test_no_sites_are_refused(sites):
    with pytest.raises(InputError, match=r"no sites given: name at least one, as in sites=\['12.res'\]"):
        model_of("llama").capture(SHORT, sites)


# --- edits ----------------------------------------------------------------------------------------------------------


@every_family
def test_an_edit_changes_the_model_and_leaves_no_trace(family):
    model = model_of(family)
    before = model.logits(LONG)
    for kind in ("res", "mlp", "att", "att_out", "transcoder"):
        with model.edited(Scale(f"1.{kind}", -1.0)) as edited:  # what a norm would undo is no edit
            assert edited is model
            assert (model.logits(LONG) - before).abs().max() > 1e-3, kind
            assert model.generate(SHORT, max_new_tokens=2) is not None
    assert torch.equal(model.logits(LONG), before)


def test_a_capture_inside_an_edit_sees_it():
    model = model_of("gemma2")
    plain = model.capture(LONG, ["0.res", "1.res", "1.att"])
    with model.edited(Scale("1.res", 0.5), Scale("1.att", 1.0)):
        edited = model.capture(LONG, ["0.res", "1.res", "1.att"])
    assert torch.equal(edited["0.res"].values, plain["0.res"].values)
    assert torch.equal(edited["1.att"].values, plain["1.att"].values)
    assert torch.equal(edited["1.res"].values, 0.5 * plain["1.res"].values)


def test_nested_edits_apply_one_after_the_other():
    model = model_of("llama")
    with model.edited(Scale("1.res", 0.5)), model.edited(Scale("1.res", 4.0)):
        twice = model.capture(LONG, ["1.res"])["1.res"].values
    torch.testing.assert_close(twice, 2 * model.capture(LONG, ["1.res"])["1.res"].values)


def test_edits_of_what_is_only_read_are_refused():
    model = model_of("llama")
    for site in ("embed", "1.transcoder_nogain"):
        with pytest.raises(InputError, match=f"{site} cannot be edited"), model.edited(Scale(site, 1.0)):
            pass


# --- splicing -------------------------------------------------------------------------------------------------------


@every_family
def test_a_perfect_sae_spliced_in_changes_nothing(family):
    model = model_of(family)
    tokens = model.tokens([SHORT, LONG])
    clean = model.logits(tokens)
    for site in ("0.res", "1.mlp", "1.att", "2.att_out"):
        with model.edited(Splice(identity_sae(model.width(site), site), error=False, at=tokens.real)):
            assert torch.equal(model.logits(tokens), clean), site


def test_a_splice_touches_only_what_it_is_told_to():
    model = model_of("gemma2")
    tokens = model.tokens([SHORT, LONG])
    sae = SAE(32, 4, site="1.res")  # all zeros: it puts nothing in the place of what it reads
    where = tokens.counted
    clean = model.capture(tokens, ["1.res"])["1.res"].values
    with model.edited(Splice(sae, error=False, at=where)):
        spliced = model.capture(tokens, ["1.res"])["1.res"].values
        logits = model.logits(tokens)
    assert torch.equal(spliced[~where], clean[~where])
    assert not spliced[where].any()
    plain = model.logits(tokens)
    assert torch.equal(logits[:, 0], plain[:, 0])  # before the first token that was touched
    assert (logits - plain)[where].abs().max() > 0.01
    with model.edited(Splice(sae, error=False, at=torch.zeros_like(where))):
        assert torch.equal(model.logits(tokens), plain)


def test_a_splice_keeps_the_models_number_format():
    model = tiny_model("llama", dtype=torch.bfloat16)
    tokens = model.tokens(LONG)
    with model.edited(Splice(identity_sae(32), error=False, at=tokens.real)):
        assert torch.equal(model.logits(tokens), model.capture(tokens, ["1.res"], logits=True).logits)


def test_splices_that_cannot_be_are_refused():
    model = model_of("llama")
    tokens = model.tokens(LONG)
    crossing = SAE(32, 4, site="1.transcoder", site_out="1.mlp")
    with pytest.raises(InputError, match=r"is a transcoder \(1.transcoder → 1.mlp\)"):
        Splice(crossing, error=False)
    with pytest.raises(InputError, match="does not say where it reads"):
        Splice(SAE(32, 4), error=False)
    with (
        pytest.raises(InputError, match=r"at has shape \(1, \d+\), the pass has \(1, 5\)"),
        model.edited(Splice(identity_sae(32), error=False, at=tokens.real)),
    ):
        model.logits(SHORT)


def test_an_sae_and_a_model_of_another_width_do_not_fit():
    model = model_of("llama")
    assert require_fit(model, planted_sae().sae) == Site(1, "res")
    assert require_fit(model, SAE(64, 4, site="1.att")) == Site(1, "att")
    assert require_fit(model, SAE(32, 4, site="1.transcoder", site_out="1.mlp")) == Site(1, "transcoder")
    with pytest.raises(Mismatch, match=r"planted-64-4 reads 64 numbers per token, tiny-llama has 32 at 1.res"):
        require_fit(model, planted_sae(64, 4).sae)
    with pytest.raises(Mismatch, match=r"writes 48 numbers per token, tiny-llama has 32 at 1.mlp"):
        require_fit(model, SAE(32, 4, 48, site="1.transcoder", site_out="1.mlp"))
    with pytest.raises(InputError, match=r"does not say where it reads: set sae\.site"):
        require_fit(model, SAE(32, 4))
    with pytest.raises(SiteNotFound, match="no layer 7"):
        require_fit(model, SAE(32, 4, site="7.res"))


# --- planted answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_in", "d_sae"), [(16, 32), (16, 16), (16, 24), (8, 3)])
def test_an_sae_finds_the_features_planted_for_it(d_in, d_sae):
    planted = planted_sae(d_in, d_sae, tokens=64, active=3, seed=5)
    found = planted.sae.encode(planted.x)
    torch.testing.assert_close(found.to_dense(), planted.features, atol=1e-5, rtol=1e-5)
    assert (planted.features > 0).sum(-1).tolist() == [3] * 64
    assert found.mean_l0 == 3
    torch.testing.assert_close(planted.sae(planted.x), planted.x, atol=1e-5, rtol=1e-5)
    again = planted_sae(d_in, d_sae, tokens=64, active=3, seed=5)
    assert torch.equal(again.x, planted.x)
    noisy = planted_sae(d_in, d_sae, tokens=64, active=3, seed=5, noise=0.1)
    assert torch.equal(noisy.features, planted.features)
    assert (noisy.x - planted.x).std().item() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("options", [{"d_sae": 65}, {"d_sae": 0}, {"active": 33}, {"d_sae": 3, "active": 4}])
def test_features_that_cannot_be_told_apart_are_not_planted(options):
    with pytest.raises(InputError):
        planted_sae(32, **options)


def test_a_tiny_model_is_the_same_each_time_and_another_for_another_seed():
    one, same, other = tiny_model("llama", seed=3), tiny_model("llama", seed=3), tiny_model("llama", seed=4, layers=2)
    assert torch.equal(one.logits(SHORT), same.logits(SHORT))
    assert not torch.equal(one.logits(SHORT), other.logits(SHORT))
    assert (one.n_layers, other.n_layers) == (3, 2)
    with pytest.raises(InputError, match="no tiny model of family 'bert': there are gemma, gemma2, gemma3_text,"):
        tiny_model("bert")


def test_tokens_made_elsewhere_are_read_as_they_are():
    model = model_of("gemma2")
    tokens = Tokens.of([[2, 57, 58, 59], [57, 58]], special={2}, side="left")
    acts = model.capture(tokens, ["1.res"])["1.res"]
    assert acts.tokens is tokens
    alone = model.capture([57, 58], ["1.res"])["1.res"]  # ids as they are: no BOS is put in front
    torch.testing.assert_close(acts.values[1, 2:], alone.values[0], atol=2e-5, rtol=1e-5)


def test_places_that_do_not_count_are_counted_by_their_reason() -> None:
    """Each place for one reason: gone through one by one."""
    model = tiny_model("llama")
    tokens = model.tokens(["the cat sat on the mat and", "another text", "it was"])
    special = tokens.counted.clone()
    special[0, 2] = special[1, 1] = False  # as a special token within the text
    found = model.capture(replace(tokens, counted=special), ["1.res"])["1.res"]
    sinks = found.counted.clone()
    sinks[0, [1, 4, 5, 6]] = False
    acts = replace(found, counted=sinks)
    reasons = dict.fromkeys(("padding", "first", "special", "sink"), 0)
    for row, column in torch.ones_like(sinks).nonzero().tolist():
        if not tokens.real[row, column]:
            reasons["padding"] += 1
        elif not special[row, column]:
            reasons["first" if tokens.positions[row, column] == 0 else "special"] += 1
        elif not sinks[row, column]:
            reasons["sink"] += 1
    assert acts.dropped == reasons
    assert min(reasons.values()) > 0
    assert len(set(reasons.values())) == 4  # none can stand for another
