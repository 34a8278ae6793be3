"""`look`: the right numbers on the right tokens, shown so that nothing in a text can break out of the display."""

import json
from html.parser import HTMLParser

import pytest
import torch

import gemscope as gs
from gemscope.errors import EmptyText, InputError, Mismatch
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports.look import visible
from gemscope.testing import identity_sae, tiny_model


@pytest.fixture(scope="module")
def model() -> gs.LanguageModel:
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def sae(model: gs.LanguageModel) -> SAE:
    """Random directions with a threshold that lets some through: about a dozen features a token."""
    torch.manual_seed(0)
    d = model.d_model
    sae = SAE(d, 4 * d, site="1.res", info=SAEInfo(name="random", neuronpedia_id="tiny/1-res-128"))
    sae.W_enc.copy_(torch.randn(d, 4 * d))
    sae.W_dec.copy_(torch.randn(4 * d, d))
    x = model.capture("the cat sat on the mat", ["1.res"])["1.res"].rows
    sae.threshold.fill_((x @ sae.W_enc).quantile(0.9).item())
    return sae


def test_every_token_carries_the_features_that_the_saes_own_arithmetic_gives(model: gs.LanguageModel, sae: SAE) -> None:
    seen = gs.look(model, sae, "the cat sat on the mat", k=3)
    acts = model.capture("the cat sat on the mat", ["1.res"])["1.res"]
    dense = sae.encode_dense(acts.values)[0]
    for token in seen.tokens:
        strengths, ids = dense[token.position].sort(descending=True)
        assert token.l0 == int((dense[token.position] > 0).sum())
        assert [one.feature for one in token.features] == ids[: min(3, token.l0)].tolist()
        assert [one.activation for one in token.features] == pytest.approx(
            strengths[: min(3, token.l0)].tolist(), rel=1e-5
        )


def test_bos_is_shown_but_enters_no_number(model: gs.LanguageModel, sae: SAE) -> None:
    seen = gs.look(model, sae, "the cat sat")
    assert not seen.tokens[0].counted
    rest = [token for token in seen.tokens if token.counted]
    assert seen.l0 == pytest.approx(sum(token.l0 for token in rest) / len(rest))
    assert seen.counted == len(rest) == len(seen.tokens) - 1
    every = gs.look(model, sae, "the cat sat", every_token=True)
    assert every.counted == len(every.tokens)
    assert every.explained_variance != seen.explained_variance


def test_a_perfect_sae_explains_everything(model: gs.LanguageModel) -> None:
    seen = gs.look(model, identity_sae(model.d_model), "the cat sat on the mat")
    assert seen.explained_variance == pytest.approx(1, abs=1e-6)


def test_explained_variance_is_one_ratio_around_the_mean_of_the_counted_tokens(
    model: gs.LanguageModel, sae: SAE
) -> None:
    seen = gs.look(model, sae, "the cat sat on the mat")
    acts = model.capture("the cat sat on the mat", ["1.res"])["1.res"]
    x = acts.rows.double()
    out = sae.decode(sae.encode_dense(acts.rows)).double()
    assert seen.explained_variance == pytest.approx(
        1 - ((x - out) ** 2).sum().item() / ((x - x.mean(0)) ** 2).sum().item(), rel=1e-6, abs=1e-5
    )


def test_json_says_null_where_a_figure_does_not_exist(model: gs.LanguageModel, sae: SAE) -> None:
    alone = gs.look(model, sae, "the").to_dict()
    assert alone["explained_variance"] is None
    json.dumps(alone, allow_nan=False)


def test_json_has_the_fields_that_others_lean_on(model: gs.LanguageModel, sae: SAE) -> None:
    found = json.loads(json.dumps(gs.look(model, sae, "the cat").to_dict()))
    assert {"tokens", "l0", "explained_variance", "model", "sae", "site"} <= set(found)
    for token in found["tokens"]:
        assert set(token) == {"token", "position", "counted", "l0", "features"}
        strengths = [one["activation"] for one in token["features"]]
        assert strengths == sorted(strengths, reverse=True)


HOSTILE = "<script>alert(1)</script> \"'&]> [bold red]x[/] \u202eabc\u0000\x1b[31m"


def test_hostile_text_stays_text_in_html_and_in_the_terminal(model: gs.LanguageModel, sae: SAE) -> None:
    seen = gs.look(model, sae, HOSTILE)
    page = seen._repr_html_()
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Reader().feed(page)
    assert "script" not in tags
    assert "http://" not in page.replace("https://www.neuronpedia.org", "")
    plain = str(seen)
    assert "\x1b" not in plain
    assert "\u202e" not in plain


def test_a_token_is_shown_as_one_printable_line() -> None:
    assert visible(" a\nb\tc\u202e\x00") == "·a↵b⇥c\\u202e\\u0000"


def test_features_link_to_their_page_and_embed_gives_the_frame_of_the_tutorial(
    model: gs.LanguageModel, sae: SAE
) -> None:
    seen = gs.look(model, sae, "the cat")
    assert seen.url(7) == "https://www.neuronpedia.org/tiny/1-res-128/7"
    frame = str(seen.embed(7))
    assert frame.startswith('<iframe src="https://www.neuronpedia.org/tiny/1-res-128/7?embed=true&amp;')
    assert "neuronpedia.org/tiny/1-res-128" in seen._repr_html_()
    with pytest.raises(InputError, match="no Neuronpedia id"):
        gs.look(model, identity_sae(model.d_model), "the cat").embed(1)


def test_what_cannot_be_looked_at_is_one_clear_line(model: gs.LanguageModel, sae: SAE) -> None:
    with pytest.raises(EmptyText):
        gs.look(model, sae, "")
    with pytest.raises(InputError, match="k=0"):
        gs.look(model, sae, "the", k=0)
    with pytest.raises(Mismatch, match=r"reads 5 numbers per token, .* has 32 at 1\.res"):
        gs.look(model, identity_sae(5), "the cat")
    nowhere = identity_sae(model.d_model)
    nowhere.site = nowhere.site_out = None
    with pytest.raises(InputError, match="does not say where it reads"):
        gs.look(model, nowhere, "the cat")


def test_a_transcoder_is_measured_against_where_it_writes(model: gs.LanguageModel) -> None:
    torch.manual_seed(1)
    d = model.d_model
    sae = SAE(d, 8, skip=True, gate="relu", site="1.transcoder", site_out="1.mlp")
    acts = model.capture("the cat sat on the mat, and the dog", ["1.transcoder", "1.mlp"])
    x, y = acts["1.transcoder"].rows, acts["1.mlp"].rows
    # The best affine map from input to output, with the features switched off: what is explained is known.
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    fit = torch.linalg.lstsq(design, y, driver="gelsd").solution
    sae.W_skip.copy_(fit[:-1].T)
    sae.b_dec.copy_(fit[-1])
    sae.b_enc.fill_(-1e6)
    expected = 1 - ((y - design @ fit) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    seen = gs.look(model, sae, "the cat sat on the mat, and the dog")
    assert seen.explained_variance == pytest.approx(expected.item(), abs=1e-3)
    assert seen.site == "1.transcoder → 1.mlp"
