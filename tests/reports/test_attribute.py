"""What causes a logit: against closed forms, finite differences, and edits made one at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from by_hand import MAIN
from gemscope.activations.model import LanguageModel
from gemscope.cli.main import main
from gemscope.edits.clamp import Ablate, Scale
from gemscope.errors import EmptyText, InputError, Mismatch, TokenOutOfRange
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports import attribute as module
from gemscope.reports.attribute import attribute
from gemscope.reports.attribution import Attribution, Total
from gemscope.reports.targets import token_of
from gemscope.testing import D_MODEL, identity_sae, tiny_model

TEXT = "the sun and the moon in the air"


def random_sae(d_sae: int = 60, site: str = "1.res", seed: int = 0, **options: object) -> SAE:
    sae = SAE(D_MODEL, d_sae, site=site, info=SAEInfo(name="random"), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for weight in sae.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    if sae.threshold is not None:
        sae.threshold.abs_()
    return sae


def parts(found: Attribution) -> float:
    return found.features + found.error + found.bias + found.skip + found.uncounted


def logit(model: LanguageModel, found: Attribution) -> float:
    here = model.logits(TEXT)[0, found.position].double()
    return float(here[found.target.id] - (0 if found.against is None else here[found.against.id]))


def at(model: LanguageModel, position: int) -> Tensor:
    mask = torch.zeros(model.tokens(TEXT).ids.shape, dtype=torch.bool)
    mask[0, position] = True
    return mask


# --- the truth ----------------------------------------------------------------------------------------------------


def test_on_a_straight_path_to_the_logits_prediction_and_measurement_are_the_closed_form() -> None:
    model = tiny_model("llama")
    model.hf.model.norm = nn.Identity()  # nothing but the unembedding follows the last block
    sae = random_sae(site="2.res")
    target, against = token_of(model, " the"), token_of(model, " and")
    found = attribute(model, sae, TEXT, " the", against=" and", k=8)
    W_U = model.hf.lm_head.weight
    acts = model.capture(TEXT, ["2.res"])["2.res"]
    f = sae.encode_dense(acts.values[0, -1])
    exact = f * (sae.W_dec @ (W_U[target] - W_U[against]))
    assert [row.position for row in found.rows] == [len(found.tokens) - 1] * 8
    order = exact.abs().argsort(descending=True)[:8]
    assert [row.feature for row in found.rows] == order.tolist()
    for row in found.rows:
        assert row.predicted == pytest.approx(exact[row.feature].item(), rel=1e-4)
        assert row.measured == pytest.approx(row.predicted, rel=1e-3, abs=1e-4)
    assert found.together_measured == pytest.approx(found.together_predicted, rel=1e-3, abs=1e-4)
    assert found.correlation == pytest.approx(1, abs=1e-5)
    assert found.total == pytest.approx(found.logit, rel=1e-4)  # linear: the parts are the logit itself


@pytest.mark.parametrize("family", MAIN)
def test_contributions_are_derivatives_in_every_family(family: str) -> None:
    """f · (∇ · d) is how the logit changes with a factor on the feature: central differences of it."""
    model, sae = tiny_model(family), random_sae()
    found = attribute(model, sae, TEXT, k=4, verify=False)
    assert len(found.rows) == 4
    step = 0.04
    for row in found.rows:
        sides = []
        for by in (1 + step, 1 - step):
            with model.edited(Scale(sae, row.feature, by, at=at(model, row.position))):
                sides.append(logit(model, found))
        assert row.predicted == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02, abs=1e-3)


@pytest.mark.parametrize("family", MAIN)
def test_the_parts_add_up_to_gradient_times_activation(family: str) -> None:
    model, sae = tiny_model(family), random_sae()
    found = attribute(model, sae, TEXT, " the", verify=False)
    _, gradient = model.gradient(TEXT, "1.res", lambda logits: logits[0, -1, found.target.id])
    acts = model.capture(TEXT, ["1.res"])["1.res"]
    by_token = (gradient[0].double() * acts.values[0].double()).sum(-1)
    size = by_token.abs().sum().item()
    assert found.total == pytest.approx(by_token.sum().item(), abs=1e-5 * size)
    assert parts(found) == pytest.approx(found.total, abs=1e-5 * size)
    assert found.uncounted == pytest.approx(by_token[~acts.counted[0]].sum().item(), abs=1e-5 * size)
    assert sum(found.features_by_token) == pytest.approx(found.features, abs=1e-9 * size)
    error = acts.values - sae(acts.values)
    each = (gradient * error * acts.counted[..., None]).sum(-1)[0]
    torch.testing.assert_close(torch.tensor(found.error_by_token), each, rtol=1e-3, atol=1e-4)
    assert abs(found.error) > 0.01 * size  # there is something to report


def test_an_sae_without_error_has_no_share_of_error() -> None:
    found = attribute(tiny_model("llama"), identity_sae(D_MODEL), TEXT)
    assert found.error == pytest.approx(0, abs=1e-5)
    assert found.error_share < 1e-5
    assert found.bias == 0
    assert found.active == found.counted.count(True) * D_MODEL


def test_a_feature_that_writes_a_token_s_unembedding_is_found_first() -> None:
    model = tiny_model("llama")
    target = token_of(model, " and")
    sae = SAE(D_MODEL, 8, gate="relu", site="2.res", info=SAEInfo(name="planted"))
    sae.b_enc.fill_(1.0)  # all eight are on everywhere, equally
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(8, D_MODEL, generator=torch.Generator().manual_seed(3))))
    written = model.hf.lm_head.weight[target] * model.hf.model.norm.weight
    sae.W_dec[5] = written / written.norm()
    found = attribute(model, sae, TEXT, " and")
    first = found.rows[0]
    assert (first.feature, first.position) == (5, len(found.tokens) - 1)
    assert first.predicted > 0
    assert first.measured is not None
    assert first.measured > 0
    assert found.active == 8  # behind the last block, only the last token has a say


@pytest.mark.parametrize(
    ("read", "options"), [("1.transcoder", {"skip": True}), ("1.transcoder_nogain", {}), ("0.res", {"skip": True})]
)
def test_transcoders_are_attributed_where_they_write(read: str, options: dict[str, bool]) -> None:
    model = tiny_model("gemma2")
    sae = random_sae(site=read, site_out="1.mlp", **options)
    found = attribute(model, sae, TEXT, k=5)
    assert found.site == f"{read} → 1.mlp"
    captured = model.capture(TEXT, [read, "1.mlp"])
    _, gradient = model.gradient(TEXT, "1.mlp", lambda logits: logits[0, -1, found.target.id])
    whole = (gradient.double() * captured["1.mlp"].values.double()).sum().item()
    assert found.total == pytest.approx(whole, rel=1e-5)
    assert parts(found) == pytest.approx(whole, rel=1e-4, abs=1e-4)
    assert (found.skip != 0) == bool(options)
    f = sae.encode_dense(captured[read].values[0])
    for row in found.rows:
        assert row.activation == pytest.approx(f[row.position, row.feature].item(), rel=1e-4)
        sides = []
        for by in (1.04, 0.96):
            with model.edited(Scale(sae, row.feature, by, at=at(model, row.position))):
                sides.append(logit(model, found))
        assert row.predicted == pytest.approx((sides[0] - sides[1]) / 0.08, rel=0.02, abs=1e-3)


# --- measuring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_measured_effects_are_those_of_one_ablation_at_a_time(family: str) -> None:
    model, sae = tiny_model(family), random_sae()
    found = attribute(model, sae, TEXT, " the", against=" and", k=6)
    before = logit(model, found)
    assert before == pytest.approx(found.logit, abs=1e-5)
    assert len({(row.feature, row.position) for row in found.rows}) == 6
    for row in found.rows:
        with model.edited(Ablate(sae, row.feature, at=(row.position,))):
            assert row.measured == pytest.approx(before - logit(model, found), abs=1e-4)
    where: dict[int, Tensor] = {}
    for row in found.rows:
        where[row.feature] = where.get(row.feature, torch.tensor(False)) | at(model, row.position)
    with model.edited(*(Ablate(sae, feature, at=mask) for feature, mask in where.items())):
        assert found.together_measured == pytest.approx(before - logit(model, found), abs=1e-4)
    assert max(abs(row.measured or 0) for row in found.rows) > 0.01


def test_in_which_batches_effects_are_measured_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = tiny_model("llama"), random_sae()
    whole = attribute(model, sae, TEXT, k=7)
    monkeypatch.setattr(module, "_LOGITS", 3 * len(whole.tokens) * model.vocab)
    pieces = attribute(model, sae, TEXT, k=7)
    for one, other in zip(whole.rows, pieces.rows, strict=True):
        assert other.measured == pytest.approx(one.measured, abs=1e-5)
    assert pieces.together_measured == pytest.approx(whole.together_measured, abs=1e-5)


def test_the_correlation_is_pearson_s() -> None:
    found = attribute(tiny_model("gemma2"), random_sae(), TEXT, k=9)
    pair = torch.tensor([[row.predicted, row.measured] for row in found.rows], dtype=torch.float64).T
    assert found.correlation == pytest.approx(torch.corrcoef(pair)[0, 1].item())
    assert attribute(tiny_model("gemma2"), random_sae(), TEXT, k=2).correlation is None


def test_verification_can_be_left_out() -> None:
    found = attribute(tiny_model("llama"), random_sae(), TEXT, k=4, verify=False)
    assert all(row.measured is None for row in found.rows)
    assert found.together_measured is found.correlation is None
    assert "all ablated together" not in str(found)


def test_a_topk_sae_is_measured_too() -> None:
    sae = random_sae(gate="topk", k=5)
    found = attribute(tiny_model("llama"), sae, TEXT, k=5)
    assert found.active <= 5 * found.counted.count(True)
    assert all(row.measured for row in found.rows)


def test_features_are_summed_over_tokens() -> None:
    model, sae = tiny_model("llama"), identity_sae(D_MODEL)
    found = attribute(model, sae, TEXT, k=1000, verify=False)
    sums: dict[int, float] = {}
    for row in found.rows:
        sums[row.feature] = sums.get(row.feature, 0.0) + row.predicted
    assert {one.feature: pytest.approx(one.predicted) for one in found.by_feature} == sums
    sizes = [abs(one.predicted) for one in found.by_feature]
    assert sizes == sorted(sizes, reverse=True)


def test_every_figure_of_a_report_has_the_same_sign_for_the_same_effect() -> None:
    model, sae = tiny_model("llama"), identity_sae(D_MODEL)
    found = attribute(model, sae, TEXT, k=1000)
    assert len(found.rows) == found.active
    assert found.together_predicted == pytest.approx(found.features, rel=1e-5)
    assert sum(one.predicted for one in found.by_feature) == pytest.approx(found.features, rel=1e-5)
    assert sum(found.features_by_token) == pytest.approx(found.features, rel=1e-5)
    # Ablating what speaks for the target lowers its logit, in every table.
    one = max((row for row in found.rows if row.measured), key=lambda row: row.measured or 0.0)
    with model.edited(Ablate(sae, one.feature, at=(one.position,))):
        assert logit(model, found) < found.logit
    alone = replace(found, rows=(one,), by_feature=(Total(feature=one.feature, tokens=1, predicted=one.predicted),))
    said = f"{one.predicted:+.3f}".replace("-", "−")
    assert str(alone).count(said) == 2  # by token, and summed over tokens
    assert alone._repr_html_().count(said) >= 2


# --- which tokens, which target -----------------------------------------------------------------------------------


def test_tokens_that_do_not_count_are_one_part_and_never_features() -> None:
    model = tiny_model("gpt2")
    found = attribute(model, random_sae(), TEXT, k=1000, verify=False)
    assert found.counted == (False, *[True] * (len(found.tokens) - 1))
    assert all(found.counted[row.position] for row in found.rows)
    assert found.features_by_token[0] == found.error_by_token[0] == 0
    assert found.uncounted != 0
    alone = attribute(model, random_sae(), [7])
    assert alone.rows == ()
    assert alone.uncounted == pytest.approx(alone.total)
    assert math.isnan(alone.error_share)
    assert alone.to_dict()["error_share"] is None
    assert "no feature is active" in str(alone)


def test_an_attention_sink_is_not_counted() -> None:
    model = tiny_model("llama", seed=1)
    (id_,) = model.tokenizer("x")["input_ids"]
    model.hf.model.embed_tokens.weight[id_] *= 1e4
    found = attribute(model, random_sae(site="0.res"), "the air and x in the sun", k=100, verify=False)
    place = found.tokens.index("x") if "x" in found.tokens else found.tokens.index(" x")
    where = [index for index, token in enumerate(found.tokens) if "x" in token]
    assert place in where
    assert not any(found.counted[index] for index in where)
    assert not any(row.position in where for row in found.rows)


def test_a_later_token_has_no_part_in_an_earlier_prediction() -> None:
    model = tiny_model("llama")
    found = attribute(model, random_sae(), TEXT, position=4, k=100, verify=False)
    assert found.position == 4
    assert max(row.position for row in found.rows) <= 4
    short = attribute(model, random_sae(), model.tokens(TEXT).ids[0, :5], target=found.target.id, k=100, verify=False)
    assert found.logit == pytest.approx(short.logit, abs=1e-4)
    assert {(row.feature, row.position) for row in short.rows} == {(row.feature, row.position) for row in found.rows}


def test_the_likeliest_token_is_the_target_unless_one_is_named() -> None:
    model = tiny_model("llama")
    found = attribute(model, random_sae(), TEXT, verify=False)
    logits = model.logits(TEXT)[0, -1]
    assert found.target.id == int(logits.argmax())
    assert found.target.probability == pytest.approx(logits.double().softmax(-1).max().item())
    assert attribute(model, random_sae(), TEXT, found.target.id, verify=False) == found


@pytest.mark.parametrize("family", MAIN)
def test_a_token_is_named_by_its_text_leading_blank_included(family: str) -> None:
    model = tiny_model(family)
    blank, plain = token_of(model, " the"), token_of(model, "the")
    assert model.strings([blank, plain]) == [" the", "the"]
    assert blank != plain


def test_in_half_precision_predictions_are_nearly_the_same_and_the_coarseness_is_said() -> None:
    exact = attribute(tiny_model("llama"), random_sae(), TEXT, 40, k=5)
    half = attribute(tiny_model("llama", dtype=torch.bfloat16), random_sae(), TEXT, 40, k=40)
    found = {(row.feature, row.position): row.predicted for row in half.rows}
    for row in exact.rows:
        assert found[row.feature, row.position] == pytest.approx(row.predicted, rel=0.15, abs=0.05)
    assert any("logits in bfloat16 come in steps of" in note for note in half.notes)
    assert not exact.notes


def test_a_forgotten_blank_is_noticed() -> None:
    model = tiny_model("llama")
    blank, plain = token_of(model, " the"), token_of(model, "the")
    model.hf.lm_head.weight[blank] = 5 * model.capture(TEXT, ["2.res"])["2.res"].values[0, -1]
    model.hf.lm_head.weight[plain] = 0
    found = attribute(model, random_sae(), TEXT, "the", verify=False)
    assert found.target.id == plain
    assert "with a leading blank, is another token and far likelier" in str(found).replace("\n", " ")


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"target": "wormhole"}, InputError, r"'wormhole' is \d+ tokens to tiny-llama, 'w' 'o' .*give one of them"),
        ({"target": ""}, InputError, "an empty target"),
        ({"target": 99999}, TokenOutOfRange, "no token 99999: tiny-llama has tokens 0 to 319"),
        ({"target": -1}, TokenOutOfRange, "no token -1"),
        ({"target": " the", "against": " the"}, InputError, "the same token"),
        ({"position": 99}, InputError, "no position 99: the text has"),
        ({"k": 0}, InputError, "k=0"),
        ({"text": ""}, EmptyText, "the text is empty"),
        ({"text": torch.ones(2, 3, dtype=torch.int64)}, InputError, "2 rows of tokens"),
        ({"sae": SAE(7, 9, site="1.res")}, Mismatch, "has 32 at 1.res"),
        ({"sae": SAE(D_MODEL, 9)}, InputError, "set sae.site"),
        ({"sae": SAE(D_MODEL, 9, site="embed")}, InputError, "embed"),
    ],
)
def test_a_mistake_is_one_clear_line(options: dict[str, object], error: type[Exception], says: str) -> None:
    given = {"sae": random_sae(), "text": TEXT} | options
    with pytest.raises(error, match=says) as raised:
        attribute(tiny_model("llama"), **given)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_it_can_be_cancelled_and_leaves_no_trace() -> None:
    class Enough(Exception):
        pass

    model, calls, limit = tiny_model("llama"), 0, -1
    before = model.logits(TEXT)
    model.capture(TEXT, ["0.res"])  # a model's typical norm is measured the first time

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise Enough

    attribute(model, random_sae(), TEXT, check=check)
    whole = calls
    assert whole >= 3 * model.n_layers  # read, gradient, ablations
    for moment in range(1, whole + 1):
        calls, limit = 0, moment
        with pytest.raises(Enough):
            attribute(model, random_sae(), TEXT, check=check)
        assert torch.equal(model.logits(TEXT), before)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.hf.modules())


# --- how it shows itself ------------------------------------------------------------------------------------------


def test_it_prints_itself_and_is_json() -> None:
    found = attribute(tiny_model("llama"), random_sae(), TEXT, " the", against=" and", k=3)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["rows"][0]["predicted"] == found.rows[0].predicted
    assert facts["target"]["token"] == " the"
    assert facts["error_share"] == found.error_share
    text = str(found)
    for piece in ("predicted", "measured", "·the", "·and", "b_dec", "Error's share", "not counted", "random"):
        assert piece in text
    assert f"{found.rows[0].feature:>7}" in text


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    sae = random_sae()
    sae.info = SAEInfo(name="<img src=x>")
    found = attribute(tiny_model("llama"), sae, "the <b>\x1b[31m and <script>", "<", k=5)
    html = found._repr_html_()
    assert "<img" not in html
    assert "><</code>" not in html
    assert "&lt;" in html
    assert "\x1b" not in html + str(found)


@pytest.mark.usefixtures("at_hand")
def test_the_shell_attributes_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attribute", "The capital of France is", "--target", " Paris", "--against", " London", "-k", "4"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["token"] == " Paris"
    assert len(found["rows"]) == 4
    assert found["correlation"] > 0.7
    assert all(row["measured"] is not None for row in found["rows"])
    assert main([*words, "--position", "-2", "--no-verify"]) == 0
    out = capsys.readouterr().out
    assert "“·Paris” − “·London” after “·France”" in out
    assert "Next:" in out
    assert main(["attribute", "The capital of France is", "--target", "id:7", "-k", "1"]) == 0
    capsys.readouterr()


def test_the_shell_tells_how_a_target_is_tokenised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", "The capital of France is", "--target", " wormholes"]) == 1
    error = capsys.readouterr().err
    assert "' worm' 'holes'" in error
    assert error.count("\n") == 1
