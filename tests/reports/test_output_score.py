"""The output score: its formula against slow passes, what it says of features that write and of those that do not."""

import json

import pytest
import torch

import gemscope as gs
from gemscope import errors
from gemscope.activations.model import LanguageModel
from gemscope.atlas.output import OutputScore
from gemscope.edits.steer import Steer
from gemscope.features.logit_lens import promoted
from gemscope.features.sae import SAE
from gemscope.reports.output_score import PROMPTS, output_score
from gemscope.testing import D_MODEL, planted_sae, tiny_model

TOKENS = [17, 40, 99]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return planted_sae().sae


@pytest.fixture(scope="module")
def writing(model: LanguageModel) -> SAE:
    """Features behind the last block, where nothing is left to answer: 0 writes token 17, 1 what no token reads."""
    sae = planted_sae(site="2.res").sae
    rows = model.hf.get_output_embeddings().weight.float()  # type: ignore[operator]
    gain = model.hf.get_submodule("model.norm").weight.float()
    sae.W_dec[0] = rows[17] * gain
    sae.W_dec[0] /= torch.linalg.vector_norm(sae.W_dec[0])
    sae.W_dec[1] = 0.0
    return sae


def test_the_score_is_its_formula_prompt_by_prompt(model: LanguageModel, sae: SAE) -> None:
    found = output_score(model, sae, 3, promoted=TOKENS, strength=gs.Strength(5.0))
    scores, ranks, best, mass, before = [], [], [], [], []
    for prompt in PROMPTS:
        before.append(model.logits(prompt)[0, -1].double().softmax(-1)[TOKENS].sum().item())
        with model.edited(Steer(sae, 3, 5.0)):
            odds = model.logits(prompt)[0, -1].double().softmax(-1)
        order = odds.argsort(descending=True).tolist()
        rank = min(order.index(id_) for id_ in TOKENS)
        likeliest = max(odds[id_].item() for id_ in TOKENS)
        scores.append((1 - rank / len(order)) * likeliest)
        ranks.append(rank)
        best.append(likeliest)
        mass.append(odds[TOKENS].sum().item())
    n = len(PROMPTS)
    assert found.score == pytest.approx(sum(scores) / n, rel=1e-3)
    assert found.rank == pytest.approx(sum(ranks) / n)
    assert found.probability == pytest.approx(sum(best) / n, rel=1e-3)
    assert found.mass == pytest.approx(sum(mass) / n, rel=1e-3)
    assert found.unedited == pytest.approx(sum(before) / n, rel=1e-3)
    assert found.change == found.mass - found.unedited


def test_a_feature_that_writes_its_token_is_told_from_one_that_writes_nothing(
    model: LanguageModel, writing: SAE
) -> None:
    assert promoted(model, writing, 0, k=1).tolist() == [17]
    strong = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(60.0))
    idle = output_score(model, writing, 1, promoted=[17], strength=gs.Strength(60.0))
    assert strong.rank < idle.rank
    assert strong.score > 10 * idle.score
    assert strong.mass > 3 * strong.control
    assert idle.change == pytest.approx(0, abs=1e-6)
    assert (strong.writes, idle.writes) == (True, False)
    assert strong.verdict == "steering with it writes what it promotes"
    assert idle.verdict == "it reads, but hardly writes"


def test_the_verdict_is_about_the_examples_where_there_are_some(model: LanguageModel, writing: SAE) -> None:
    does = output_score(model, writing, 0, promoted=[40], examples=[17], strength=gs.Strength(60.0))
    does_not = output_score(model, writing, 0, promoted=[17], examples=[40], strength=gs.Strength(60.0))
    assert does.verdict == "steering with it does what its examples suggest"
    assert does_not.verdict == "it reads, but hardly writes"
    alone = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(60.0))
    assert does.examples is not None
    assert does.examples.mass == alone.mass
    assert does.examples.score == alone.score


def test_tokens_of_the_measured_effect_stand_beside_those_of_the_direct_path(
    model: LanguageModel, writing: SAE
) -> None:
    both = output_score(model, writing, 0, promoted=[40], measured=[17], strength=gs.Strength(60.0))
    direct = output_score(model, writing, 0, promoted=[40], strength=gs.Strength(60.0))
    measured = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(60.0))
    assert direct.measured is None
    assert both.measured is not None
    assert (both.score, both.mass) == (direct.score, direct.mass)
    assert (both.measured.score, both.measured.mass) == (measured.score, measured.mass)
    assert both.writes is True  # as steering is expected to do
    assert direct.writes is False
    assert both.to_dict()["measured"]["output_score"] == measured.score  # type: ignore[index]
    assert "tokens promoted by the measured effect" in str(both)


def test_controls_are_as_strong_as_the_feature(model: LanguageModel, writing: SAE) -> None:
    one = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(60.0))
    again = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(60.0))
    none = output_score(model, writing, 0, promoted=[17], strength=gs.Strength(0.0))
    assert one == again
    assert one.control != one.unedited
    assert none.control == pytest.approx(none.unedited, rel=1e-4)
    assert none.mass == pytest.approx(none.unedited, rel=1e-4)


def test_it_can_be_called_off_and_leaves_no_trace(model: LanguageModel, sae: SAE) -> None:
    class OffError(Exception):
        pass

    def check() -> None:
        raise OffError

    before = model.logits("a thing")
    with pytest.raises(OffError):
        output_score(model, sae, 3, promoted=TOKENS, strength=gs.Strength(5.0), check=check)
    output_score(model, sae, 3, promoted=TOKENS, strength=gs.Strength(5.0))
    assert torch.equal(before, model.logits("a thing"))


def test_it_is_one_pass(model: LanguageModel, sae: SAE) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    output_score(model, sae, 3, promoted=TOKENS, strength=gs.Strength(5.0), check=check)
    assert calls == model.n_layers


def test_what_cannot_be_is_one_line(model: LanguageModel, sae: SAE) -> None:
    with pytest.raises(errors.InputError, match="no feature 64"):
        output_score(model, sae, 64, promoted=TOKENS, strength=gs.Strength(5.0))
    with pytest.raises(errors.InputError, match="no promoted tokens"):
        output_score(model, sae, 3, promoted=[], strength=gs.Strength(5.0))
    with pytest.raises(errors.TokenOutOfRange, match="no token 320"):
        output_score(model, sae, 3, promoted=[320], strength=gs.Strength(5.0))
    with pytest.raises(errors.TokenOutOfRange, match="no token -1"):
        output_score(model, sae, 3, promoted=[3], examples=[-1], strength=gs.Strength(5.0))
    with pytest.raises(errors.Mismatch):
        output_score(model, planted_sae(D_MODEL + 1).sae, 3, promoted=[3], strength=gs.Strength(5.0))
    far = planted_sae().sae
    far.W_dec[3] *= 1e10
    with pytest.raises(errors.NotFinite):
        output_score(model, far, 3, promoted=[3], strength=gs.Strength(1e38))


def test_it_tells_itself_in_a_line_and_as_json(model: LanguageModel, sae: SAE) -> None:
    found = output_score(model, sae, 3, promoted=TOKENS, strength=gs.Strength(5.0))
    out = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert out["output_score"] == found.score
    assert out["verdict"] == found.verdict
    assert out["prompts"] == list(PROMPTS)
    assert "\n" not in found.verdict
    assert found.verdict in str(found)


def test_the_bundled_pair_is_scored(bundled_model: gs.LanguageModel) -> None:
    model, sae = bundled_model, gs.load_sae("smollm2")
    found = output_score(model, sae, 2510, promoted=promoted(model, sae, 2510).tolist(), strength=gs.Strength(92.9))
    assert isinstance(found, OutputScore)
    assert 0 <= found.score <= 1
    assert 0 < found.unedited < 0.01
