"""Steering: both texts, their log-probabilities against slow passes, dose and response, the controls, the shell."""

import io
import json
import math
from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
from rich.console import Console

import gemscope as gs
from gemscope import errors
from gemscope.activations.model import LanguageModel
from gemscope.edits import controls
from gemscope.edits.clamp import Ablate, Clamp
from gemscope.edits.splice import Splice
from gemscope.edits.steer import Steer
from gemscope.edits.strength import Amount
from gemscope.edits.units import Units
from gemscope.features.logit_lens import logit_effects, promoted
from gemscope.features.sae import SAE
from gemscope.reports import dosing as dose_module
from gemscope.reports.dose import Dose
from gemscope.reports.dosing import dose
from gemscope.reports.steer import Frame, Pair, Steered, steer, stream
from gemscope.reports.writing import Continuation, perplexity, repetition
from gemscope.testing import D_MODEL, planted_sae, tiny_model

PROMPT = "the king and the queen in thunder"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return planted_sae().sae


def _slowly(model: LanguageModel, prompt: str, ids: tuple[int, ...], edits: tuple[gs.Edit, ...]) -> list[float]:
    """Log-probabilities from a whole pass over the text before each token, the model called by itself."""
    begun = model.tokens(prompt).ids[0].tolist()
    out = []
    for place, id_ in enumerate(ids):
        before = torch.tensor([[*begun, *ids[:place]]])
        with ExitStack() as stack, torch.no_grad():
            if edits:
                stack.enter_context(model.edited(*edits))
                logits = model.logits(before, prompt=len(begun))
            else:
                logits = model.hf(before).logits
        out.append(logits[0, -1].double().log_softmax(-1)[id_].item())
    return out


# --- log-probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["all", "prompt", "generated"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_every_log_probability_is_that_of_a_slow_pass(family: str, at: str, sae: SAE) -> None:
    model = tiny_model(family)
    edits = (Steer(sae, 3, 4.0, at=at), Clamp(sae, 7, 2.0, at=at))
    found = steer(model, PROMPT, edits, n=2, max_new_tokens=7, temperature=1.0)
    for pair in found.pairs:
        for one in (pair.default, pair.steered):
            assert one.logprobs == pytest.approx(_slowly(model, PROMPT, one.ids, ()), abs=2e-4)
            assert one.edited == pytest.approx(_slowly(model, PROMPT, one.ids, edits), abs=2e-4)
            assert one.change == tuple(after - before for after, before in zip(one.edited, one.logprobs, strict=True))
    assert any(abs(change) > 0.01 for pair in found.pairs for change in pair.steered.change)


def test_without_strength_both_texts_are_the_same_and_no_log_probability_changes(
    model: LanguageModel, sae: SAE
) -> None:
    found = steer(model, PROMPT, [Steer(sae, 3, 0.0)], n=3, max_new_tokens=10, temperature=0.8)
    assert len({pair.default.text for pair in found.pairs}) > 1
    for pair in found.pairs:
        assert pair.default == pair.steered
        assert set(pair.default.change) == {0.0}


def test_the_default_text_is_what_the_model_writes_by_itself(model: LanguageModel, sae: SAE) -> None:
    found = steer(model, PROMPT, [Steer(sae, 3, 30.0)], max_new_tokens=8, temperature=0.0)
    assert found.pairs[0].default.text == model.generate(PROMPT, max_new_tokens=8)
    with model.edited(Steer(sae, 3, 30.0)):
        assert found.pairs[0].steered.text == model.generate(PROMPT, max_new_tokens=8)
    assert found.pairs[0].default.text != found.pairs[0].steered.text


def test_the_same_seed_gives_the_same_texts_and_another_others(model: LanguageModel, sae: SAE) -> None:
    one, again, other = (
        steer(model, PROMPT, [Steer(sae, 3, 3.0)], max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.pairs != other.pairs


def test_texts_end_where_the_model_ends_them_and_nothing_is_scored_beyond(model: LanguageModel, sae: SAE) -> None:
    edits = [Steer(sae, 3, 3.0)]
    whole = steer(model, PROMPT, edits, n=4, max_new_tokens=12, temperature=1.0)
    end = whole.pairs[0].default.ids[2]
    ending = tiny_model("llama")
    ending.__dict__["ends"] = frozenset({end})  # as if that token ended a text
    found = steer(ending, PROMPT, edits, n=4, max_new_tokens=12, temperature=1.0)
    assert found.pairs[0].default.ended
    assert not all(one.ended for pair in found.pairs for one in (pair.default, pair.steered))
    for pair, other in zip(found.pairs, whole.pairs, strict=True):
        for one, longer in ((pair.default, other.default), (pair.steered, other.steered)):
            length = longer.ids.index(end) + 1 if end in longer.ids else len(longer.ids)
            assert one.ids == longer.ids[:length]
            assert len(one.tokens) == len(one.logprobs) == len(one.edited) == length
            assert one.logprobs == pytest.approx(longer.logprobs[:length], abs=1e-4)
            assert one.ended == (one.ids[-1] == end)


def test_a_long_vocabulary_is_scored_in_pieces_to_the_same_figures(
    model: LanguageModel, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemscope.reports import writing

    edits = [Clamp(sae, 3, 3.0)]
    once = steer(model, PROMPT, edits, n=3, max_new_tokens=6, temperature=1.0)
    monkeypatch.setattr(writing, "_ENTRIES", 1)
    pieces = steer(model, PROMPT, edits, n=3, max_new_tokens=6, temperature=1.0)
    for one, other in zip(once.pairs, pieces.pairs, strict=True):
        assert one.steered.ids == other.steered.ids
        assert one.steered.edited == pytest.approx(other.steered.edited, abs=1e-5)


# --- the stream ---------------------------------------------------------------------------------------------------


def test_frames_grow_by_a_token_and_the_report_comes_last(model: LanguageModel, sae: SAE) -> None:
    *frames, last = stream(model, PROMPT, [Steer(sae, 3, 3.0)], n=2, max_new_tokens=6, temperature=1.0)
    assert isinstance(last, Steered)
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.n for frame in frames if isinstance(frame, Frame)] == [1, 2, 3, 4, 5, 6]
    for earlier, later in pairwise(frames):
        assert isinstance(earlier, Frame)
        assert isinstance(later, Frame)
        for one, other in zip(earlier.default + earlier.steered, later.default + later.steered, strict=True):
            assert other.startswith(one)
    final = frames[-1]
    assert isinstance(final, Frame)
    assert all(pair.default.text.startswith(text) for pair, text in zip(last.pairs, final.default, strict=True))


def test_frames_hold_whole_characters_and_tokens_join_to_the_text() -> None:
    from gemscope.reports.writing import Row

    row = Row()
    for byte in "aé€":
        for raw in byte.encode():
            row.add(1, bytes([raw]), special=False, last=False)
            assert "�" not in row.text
    assert row.text == "aé€"
    assert row.tokens == ["a", "", "é", "", "", "€"]
    row.add(1, "é".encode()[:1], special=False, last=False)
    assert row.text == "aé€"
    row.close()
    assert row.text == "".join(row.tokens) == "aé€�"
    row.add(2, b"<|end|>", special=True, last=True)
    assert row.text == "aé€�"
    assert row.tokens[-1] == "<|end|>"
    assert row.ended


def test_a_stream_that_is_closed_leaves_no_trace(model: LanguageModel, sae: SAE) -> None:
    before = model.logits(PROMPT)
    writing = stream(model, PROMPT, [Steer(sae, 3, 30.0)], max_new_tokens=6)
    next(writing)
    writing.close()  # type: ignore[attr-defined]
    assert torch.equal(before, model.logits(PROMPT))


def test_work_that_is_called_off_ends_within_a_block_and_leaves_no_trace(model: LanguageModel, sae: SAE) -> None:
    class OffError(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OffError

    before = model.logits(PROMPT)
    with pytest.raises(OffError):
        steer(model, PROMPT, [Steer(sae, 3, 30.0)], max_new_tokens=6, check=check)
    assert calls == 5
    assert torch.equal(before, model.logits(PROMPT))
    calls = 0
    with pytest.raises(OffError):
        dose(model, PROMPT, lambda by: [Steer(sae, 3, by)], [0, 1], target=5, check=check)
    assert calls == 5


# --- figures ------------------------------------------------------------------------------------------------------


def test_perplexity_and_repetition_are_what_they_say() -> None:
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4.0)
    assert math.isnan(perplexity([]))
    assert perplexity([-1e6]) == math.inf
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repetition([7, 7, 7, 7, 7]) == pytest.approx(2 / 3)
    assert repetition([1, 2]) == 0


def _hostile() -> Steered:
    tokens = ("<script>alert(1)</script>", "\x1b[31m", "\u202eevil", "\n", "", " né")
    one = Continuation(
        text="".join(tokens),
        tokens=tokens,
        ids=(1, 2, 3, 4, 5, 6),
        logprobs=(-1.0, -2.0, -3.0, -math.inf, -1.0, -1.0),
        edited=(-2.0, -1.0, -3.0, -1.0, -1.5, -3.0),
        ended=False,
    )
    return Steered(
        model="m<b>",
        prompt="<img src=x onerror=alert(1)>\x1b[2J",
        edits=("clamp <i>feature</i> 3",),
        strengths=(gs.Strength(3.0),),
        pairs=(Pair(default=one, steered=one),),
        temperature=0.5,
        seed=1,
        max_new_tokens=6,
        at="all",
    )


def test_hostile_text_is_harmless_in_terminals_pages_and_json() -> None:
    found = _hostile()
    for text in (str(found), found._repr_html_()):
        assert "\x1b" not in text
        assert "\u202e" not in text
    html = found._repr_html_()
    for tag in ("<script", "<img", "<i>", "<b>feature", "m<b>"):
        assert tag not in html
    out = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert out["pairs"][0]["default"]["logprobs"][3] is None
    assert out["pairs"][0]["default"]["change"][0] == -1.0
    assert out["strengths"] == [{"raw": 3.0, "of_max": None, "of_norm": None}]


def test_changes_are_colours_where_there_are_some_and_figures_elsewhere() -> None:
    found = _hostile()
    plain = str(found)
    assert "[-1.0]" in plain
    assert "[+1.0]" in plain
    assert "né[-2.5]" in plain  # with the change of the token that began the character
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", width=160).print(found)
    assert "[-1.0]" not in out.getvalue()
    assert "\x1b[3" in out.getvalue()
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", no_color=True, width=160).print(found)
    assert "[-1.0]" in out.getvalue()


def test_a_report_states_its_conditions(model: LanguageModel, sae: SAE) -> None:
    units = Units(sae, maxima={3: 2.0}, median_norm=10.0, source="sample", tokens=100)
    edits = [Clamp(sae, 3, units.max(3, 1.5), at="generated"), Ablate(sae, 4, at="generated")]
    found = steer(model, PROMPT, edits, max_new_tokens=3, temperature=0.25, seed=9, control="a control")
    assert "3 raw = 1.5 × max = 0.3 × median norm" in str(found)
    assert found.at == "generated"
    assert found.strengths == (units.max(3, 1.5), None)
    for said in ("seed 9", "temperature 0.25", "a control", "same dice", "unedited model's"):
        assert said in str(found)
    assert found.to_dict()["control"] == "a control"


# --- bad input ----------------------------------------------------------------------------------------------------


def _one_line(error: pytest.ExceptionInfo[errors.GemscopeError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_refused_in_one_line_before_anything_runs(model: LanguageModel, sae: SAE) -> None:
    fine = Steer(sae, 3, 1.0)
    wide = planted_sae(D_MODEL + 1).sae
    with pytest.raises(errors.InputError, match="no feature 64: this SAE has features 0 to 63") as error:
        Steer(sae, 64, 1.0)
    _one_line(error)
    with pytest.raises(errors.InputError, match="strength nan"):
        Steer(sae, 3, math.nan)
    with pytest.raises(errors.Mismatch, match="33") as mismatch:
        stream(model, PROMPT, [Steer(wide, 3, 1.0)])
    _one_line(mismatch)
    with pytest.raises(errors.InputError, match="contradict"):
        stream(model, PROMPT, [Splice(sae, error=False), Splice(sae, error=True)])
    with pytest.raises(errors.EmptyText, match="empty"):
        stream(model, "", [fine])
    with pytest.raises(errors.InputError, match="n=0"):
        stream(model, PROMPT, [fine], n=0)
    with pytest.raises(errors.TextTooLong, match="do not fit"):
        stream(model, PROMPT, [fine], max_new_tokens=200)
    with pytest.raises(errors.TextTooLong):
        stream(model, "the " * 500, [fine])
    with pytest.raises(errors.InputError, match="temperature=-1"):
        stream(model, PROMPT, [fine], temperature=-1.0)
    with pytest.raises(errors.InputError, match="mask"):
        stream(model, PROMPT, [Steer(sae, 3, 1.0, at=torch.ones(1, 5, dtype=torch.bool))])
    with pytest.raises(errors.InputError, match="2 prompts"):
        stream(model, model.tokens(["a", "b"]), [fine])


def test_a_strength_beyond_all_numbers_is_one_line(model: LanguageModel, sae: SAE) -> None:
    far = [Steer(sae, 3, 3e38), Steer(sae, 4, 3e38), Steer(sae, 5, 3e38), Steer(sae, 6, 3e38)] * 4
    with pytest.raises(errors.NotFinite) as error:
        steer(model, PROMPT, far, max_new_tokens=3)
    _one_line(error)


# --- dose and response --------------------------------------------------------------------------------------------


def _swept(model: LanguageModel, sae: SAE, **options: object) -> Dose:
    given = {"target": 17, "n": 2, "max_new_tokens": 8, "temperature": 1.0} | options
    return dose(model, PROMPT, lambda by: [Steer(sae, 3, by)], [0, 2, 8], **given)  # type: ignore[arg-type]


def test_a_dose_has_the_logits_that_the_edited_model_gives(model: LanguageModel, sae: SAE) -> None:
    found = _swept(model, sae)
    for one in found.responses:
        assert one.strength is not None
        with model.edited(Steer(sae, 3, one.strength)):
            logits = model.logits(PROMPT)[0, -1].double()
        assert one.logit == pytest.approx(logits[17].item(), abs=1e-4)
        assert one.logprob == pytest.approx(logits.log_softmax(-1)[17].item(), abs=1e-4)
        assert one.logit_change == pytest.approx(one.logit - found.unedited.logit)
    zero = found.responses[0]
    assert (zero.logit_change, zero.logprob_change) == (0, 0)
    assert zero.texts == found.unedited.texts
    assert zero.perplexity == found.unedited.perplexity
    assert found.responses[-1].logit_change != 0
    assert found.target == tuple(model.strings([17]))


def test_a_dose_writes_what_steer_writes(model: LanguageModel, sae: SAE) -> None:
    found = _swept(model, sae)
    alone = steer(model, PROMPT, [Steer(sae, 3, 8.0)], n=2, max_new_tokens=8, temperature=1.0)
    assert found.responses[-1].texts == tuple(pair.steered.text for pair in alone.pairs)
    assert found.unedited.texts == tuple(pair.default.text for pair in alone.pairs)
    every = [value for pair in alone.pairs for value in pair.steered.logprobs]
    assert found.responses[-1].perplexity == pytest.approx(perplexity(every), rel=1e-3)
    again = sum(pair.steered.repetition for pair in alone.pairs) / 2
    assert found.responses[-1].repetition == pytest.approx(again)


def test_a_dose_does_not_hang_on_its_batches(model: LanguageModel, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    once = _swept(model, sae)
    monkeypatch.setattr(dose_module, "_ROWS", 1)
    pieces = _swept(model, sae)
    assert [one.texts for one in once.responses] == [one.texts for one in pieces.responses]


def test_several_targets_count_as_one(model: LanguageModel, sae: SAE) -> None:
    one, other = (_swept(model, sae, target=id_).responses[1] for id_ in (17, 40))
    both = _swept(model, sae, target=[17, 40]).responses[1]
    assert math.exp(both.logprob) == pytest.approx(math.exp(one.logprob) + math.exp(other.logprob), rel=1e-4)


def test_edits_of_generated_text_alone_show_in_the_logit_too(model: LanguageModel, sae: SAE) -> None:
    found = dose(model, PROMPT, lambda by: [Steer(sae, 3, by, at="generated")], [4], target=17, n=1, max_new_tokens=3)
    with model.edited(Steer(sae, 3, 4.0, at=(-1,))):
        logits = model.logits(PROMPT)[0, -1]
    assert found.responses[0].logit == pytest.approx(logits[17].item(), abs=1e-4)
    assert "last token edited too" in str(found)


def test_a_control_stands_beside_its_strength(model: LanguageModel, sae: SAE) -> None:
    found = _swept(model, sae, control=lambda by: [Steer(sae, 9, by)], control_name="feature 9")
    assert [one.strength for one in found.controls] == [0, 2, 8]
    assert found.controls[-1].texts != found.responses[-1].texts
    text = str(found)
    assert text.count("\n control ") == 3
    assert "█" not in text  # bars are for a terminal
    terminal = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    with terminal.capture() as shown:
        terminal.print(found)
    assert shown.get().count("\n control ") == 6
    assert "░" in shown.get()
    assert "█" in shown.get()
    assert "control: feature 9" in text
    out = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(out["controls"]) == len(out["responses"]) == 3
    assert {"target_logit", "perplexity", "repetition", "strength", "texts"} <= set(out["responses"][0])
    html = found._repr_html_()
    assert html.count("<svg") == 3
    assert "control" in html


def test_a_dose_that_cannot_be_is_refused(model: LanguageModel, sae: SAE) -> None:
    make = lambda by: [Steer(sae, 3, by)]  # noqa: E731
    with pytest.raises(errors.InputError, match="no strengths"):
        dose(model, PROMPT, make, [], target=1)
    with pytest.raises(errors.InputError, match="strength nan"):
        dose(model, PROMPT, make, [math.nan], target=1)
    with pytest.raises(errors.TokenOutOfRange, match="no token 320"):
        dose(model, PROMPT, make, [1], target=320)
    with pytest.raises(errors.InputError, match="no target"):
        dose(model, PROMPT, make, [1], target=[])


def test_the_most_promoted_token_of_one_feature_is_that_of_all(model: LanguageModel, sae: SAE) -> None:
    (effects,) = logit_effects(model, sae, k=4)
    for feature in (0, 9, 63):
        assert promoted(model, sae, feature, k=4).tolist() == effects.promoted[feature].tolist()
    with pytest.raises(errors.InputError, match="no feature 64"):
        promoted(model, sae, 64)


# --- controls -----------------------------------------------------------------------------------------------------


def test_a_random_feature_is_another_living_one_of_like_maximum(sae: SAE) -> None:
    maxima = {0: 10.0, 5: 11.0, 6: 100.0, 7: 9.0, 32: 10.0}  # 32 is the opposite of 0
    units = Units(sae, maxima=maxima, median_norm=1.0, source="s", tokens=1)
    found = {controls.random_feature(sae, 0, units, seed) for seed in range(40)}
    assert found == {5, 7}
    assert controls.random_feature(sae, 0, units, 3) == controls.random_feature(sae, 0, units, 3)
    alone = Units(sae, maxima={0: 10.0, 6: 100.0}, median_norm=1.0, source="s", tokens=1)
    assert controls.random_feature(sae, 0, alone) == 6
    with pytest.raises(errors.InputError, match="no other feature"):
        controls.random_feature(sae, 0, Units(sae, maxima={0: 1.0}, median_norm=1.0, source="s", tokens=1))
    with pytest.raises(errors.InputError, match="fires on none"):
        controls.random_feature(sae, 1, units)


def test_several_features_each_have_another_one_in_their_place_and_never_one_of_them(sae: SAE) -> None:
    maxima = {0: 10.0, 5: 10.0, 7: 10.0, 9: 10.0}
    units = Units(sae, maxima=maxima, median_norm=1.0, source="s", tokens=1)
    for seed in range(20):
        act = controls.Act(how="add", sae=sae, units=units, seed=seed)
        control = act.random([0, 5])
        edits = control.edits({0: Amount(3.0), 5: Amount(2.0, "max")})
        found = [edit.of[1] for edit in edits]
        assert set(found) == {7, 9}
        assert [edit.strength.raw for edit in edits] == [3.0, 20.0]
        assert control.name == f"random feature {found[0]} in place of 0, {found[1]} in place of 5"
    with pytest.raises(errors.InputError, match="no other feature"):
        act.random([0, 5, 7])


def test_noise_is_as_long_as_the_direction_and_the_same_for_a_seed(sae: SAE) -> None:
    one, again, other = (controls.noise(sae, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.linalg.vector_norm(one).item() == pytest.approx(
        torch.linalg.vector_norm(sae.direction(3)).item(), rel=1e-5
    )
