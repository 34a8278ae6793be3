"""Every report says in which number format and where its numbers were computed, and why there."""

import json
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.features.fit import computed_by
from gemscope.reports.dosing import dose
from gemscope.testing import planted_sae, tiny_model
from texts import varied

SAID = "float32 on cpu (stored in bfloat16, which is slow here)"


@pytest.fixture(scope="module")
def model() -> gs.LanguageModel:
    model = tiny_model("llama")
    model.why = "stored in bfloat16, which is slow here"
    return model


@pytest.fixture(scope="module")
def sae() -> gs.SAE:
    return planted_sae(site="1.res", seed=3).sae


def reports(model: gs.LanguageModel, sae: gs.SAE) -> dict[str, Any]:
    text, corpus, steer = varied(0, 1)[0], gs.Corpus.of(varied(0, 12)), gs.Steer(sae, 3, 2.0)
    labelled = [(text, number % 2) for number, text in enumerate(dict.fromkeys(varied(0, 60)))]
    return {
        "look": gs.look(model, sae, text),
        "check": gs.check(model, sae, corpus, tokens=200),
        "score": gs.score(model, sae, corpus, tokens=200, length=64),
        "compare": gs.compare(model, [sae, planted_sae(site="1.res", seed=4).sae], corpus, tokens=200, length=64),
        "steer": gs.steer(model, text, [steer], max_new_tokens=2),
        "dose": dose(model, text, lambda by: [gs.Steer(sae, 3, by)], [2.0], target=5, n=1, max_new_tokens=2),
        "attribute": gs.attribute(model, sae, text),
        "probe": gs.sparse_probe(model, sae, labelled, k=[1]),
    }


def test_every_report_says_what_it_was_computed_in_and_why(model: gs.LanguageModel, sae: gs.SAE) -> None:
    for name, report in reports(model, sae).items():
        assert SAID in json.dumps(report.to_dict()), name
        printed = " ".join(str(report).split())
        assert SAID in printed, (name, printed)


def test_an_sae_elsewhere_is_said(model: gs.LanguageModel, sae: gs.SAE) -> None:
    assert computed_by(model, sae) == SAID
    assert computed_by(model, gs.SAE(4, 8, 4, gate="relu", device="meta")) == f"{SAID}, the SAE on meta"
    assert tiny_model("llama", dtype=torch.bfloat16).computed == "bfloat16 on cpu"
