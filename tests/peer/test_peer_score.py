"""The same model, SAE and tokens through SAELens's evals: the same figures where its formulas are right, and where they
are not, what docs/score.md says of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import gemscope as gs
from by_hand import random_sae
from gemscope.activations.model import LanguageModel
from gemscope.features.metrics import explained_variance
from gemscope.features.sae import SAE
from gemscope.reports.score import Score
from gemscope.testing import tiny_model
from gemscope.text.tokens import Tokens

REPOSITORY = Path(__file__).parents[2]
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
SCRIPT = Path(__file__).parent / "score.py"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEER.exists(), reason="SAELens is not installed in .venv-peer: run `make peer`"),
]

LENGTH, BATCH = 24, 6
CORPUS = gs.Corpus.of(
    [" ".join(f"the {word} and the {word} sang of hours in {word * 3}." for word in ("one", "sun", "moon", "sea")) * 5]
)


@dataclass(frozen=True)
class Both:
    model: LanguageModel
    sae: SAE
    transcoder: SAE
    rows: Tokens
    theirs: Mapping[str, Any]

    def ours(self, *, every_token: bool, sae: SAE | None = None) -> Score:
        return gs.score(
            self.model,
            sae or self.sae,
            CORPUS,
            tokens=LENGTH * BATCH,
            length=LENGTH,
            batch=BATCH,
            every_token=every_token,
        )


@pytest.fixture(scope="module", params=["llama", "mistral"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A model without BOS and one with it, as folders; one process of SAELens's each."""
    root = tmp_path_factory.mktemp("score")
    model = tiny_model(request.param)
    model.hf.set_attn_implementation("eager")  # the bridge's own; another kernel rounds otherwise
    model.hf.save_pretrained(root / "model")
    model.tokenizer.save_pretrained(root / "model")
    sae = random_sae(model, "1.res", seed=1)
    transcoder = random_sae(model, "1.transcoder", site_out="1.mlp", skip=True)
    gs.save_sae(sae, root / "sae")
    gs.save_sae(transcoder, root / "transcoder")
    rows = next(model.rows(CORPUS, length=LENGTH, batch=BATCH))
    assert rows.real.all()
    assert rows.ids.shape == (BATCH, LENGTH)
    save_file({"ids": rows.ids.contiguous()}, root / "inputs.safetensors")
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PEER, SCRIPT, root], check=False, capture_output=True, text=True, timeout=280, env=os.environ | offline
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Both(model, sae, transcoder, rows, json.loads((root / "answers.json").read_text()))


SHARED = {
    "l0": "l0",
    "explained_variance": "explained_variance",
    "cosine": "cossim",
    "l2_ratio": "l2_ratio",
    "relative_bias": "relative_reconstruction_bias",
    "loss": "ce_loss_without_sae",
    "spliced_loss": "ce_loss_with_sae",
}
"""Figures of which both have the same notion, by our name and theirs."""


def test_all_tokens_give_the_same_figures(both: Both) -> None:
    ours, theirs = both.ours(every_token=True), both.theirs["point"]["all"]
    for name, other in SHARED.items():
        assert getattr(ours, name) == pytest.approx(theirs[other], rel=1e-4), name
    assert ours.zero_loss == pytest.approx(theirs["ce_loss_with_ablation"], rel=1e-5)
    assert ours.loss_recovered_zero == pytest.approx(theirs["ce_loss_score"], rel=1e-3)
    assert ours.dead == pytest.approx(sum(density == 0 for density in theirs["feature_density"]) / ours.features)
    assert ours.dense == pytest.approx(sum(density > 0.1 for density in theirs["feature_density"]) / ours.features)


def test_counted_tokens_alone_give_the_same_figures(both: Both) -> None:
    """SAELens leaves special ids out; of a model without BOS it counts the first position, which we do not."""
    ours, theirs = both.ours(every_token=False), both.theirs["point"]["content"]
    if both.model.bos is None:
        assert ours.masked >= BATCH
        assert theirs["l0"] == both.theirs["point"]["all"]["l0"]
        return
    assert ours.masked == BATCH
    for name, other in SHARED.items():
        assert getattr(ours, name) == pytest.approx(theirs[other], rel=1e-4), name


def test_its_ablation_zeroes_special_tokens_too(both: Both) -> None:
    """Its splice leaves them alone, its baseline does not: the two are then not of the same tokens."""
    if both.model.bos is None:
        pytest.skip("no special token in the rows of a model without BOS")
    ours, theirs = both.ours(every_token=False), both.theirs["point"]["content"]
    everything = both.theirs["point"]["all"]["ce_loss_with_ablation"]
    assert theirs["ce_loss_with_ablation"] == pytest.approx(everything, rel=1e-3)
    assert abs(ours.zero_loss - theirs["ce_loss_with_ablation"]) > 1e-3


@pytest.mark.parametrize("which", ["all", "content"])
def test_kl_is_the_same_token_by_token_but_it_averages_over_last_positions_too(both: Both, which: str) -> None:
    """The last token of a row has no next one: its loss is left out in SAELens, its KL is not."""
    if which == "content" and both.model.bos is None:
        pytest.skip("other tokens count there: see the test of counted tokens")
    ours = both.ours(every_token=which == "all")
    by_token = torch.tensor(both.theirs[f"kl_{which}"]["kl_div_with_sae"])
    mask = both.rows.real if which == "all" else both.rows.counted
    assert ours.kl == pytest.approx(by_token[:, :-1][mask[:, :-1]].mean().item(), rel=1e-4)
    theirs = both.theirs["point"][which]["kl_div_with_sae"]
    assert theirs == pytest.approx(by_token[mask].mean().item(), rel=1e-4)
    assert abs(theirs - ours.kl) > 1e-5
    if which == "all":
        ablated = torch.tensor(both.theirs["kl_all"]["kl_div_with_ablation"])
        assert ours.zero_kl == pytest.approx(ablated[:, :-1].mean().item(), rel=1e-4)


def test_its_legacy_explained_variance_is_another_figure(both: Both) -> None:
    theirs = both.theirs["point"]["all"]
    assert abs(theirs["explained_variance_legacy"] - both.ours(every_token=True).explained_variance) > 1e-3


def test_on_its_bridge_the_old_name_of_a_site_replaces_nothing(both: Both) -> None:
    """Neither splice nor ablation happens; only the division by their difference gives it away."""
    assert both.theirs["alias"]["all"] == {"raised": "ZeroDivisionError"}


def test_its_evals_hold_a_transcoder_against_what_it_reads(both: Both) -> None:
    theirs = both.theirs["transcoder"]["explained_variance"]
    x = both.model.capture(both.rows, ["1.transcoder"], every_token=True)["1.transcoder"].rows
    without_skip = both.transcoder.decode(both.transcoder.encode(x))
    assert theirs == pytest.approx(explained_variance(x, without_skip), rel=1e-4)
    assert both.ours(every_token=True, sae=both.transcoder).explained_variance != pytest.approx(theirs, rel=0.05)
