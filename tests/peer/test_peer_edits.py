"""The same edits through SAELens and TransformerLens, on the same model, SAE and tokens: the same logits."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gemscope as gs
from by_hand import TEXT, random_sae
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.features.sae import SAE
from gemscope.testing import tiny_model

REPOSITORY = Path(__file__).parents[2]
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
SCRIPT = Path(__file__).parent / "edits.py"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEER.exists(), reason="SAELens is not installed in .venv-peer: run `make peer`"),
]

FEATURE, BY, TO, NEW = 7, 3.0, 5.0, 12


@dataclass(frozen=True)
class Both:
    model: LanguageModel
    sae: SAE
    transcoder: SAE
    skip: SAE
    ids: Tensor
    theirs: dict[str, Tensor]

    def edits(self) -> dict[str, list[Edit]]:
        """Ours by the names of theirs. SAELens knows no tokens to leave alone, hence `every_token`."""
        sae, every = self.sae, {"every_token": True}
        return {
            "clean": [],
            "steer": [gs.Steer(sae, FEATURE, BY, **every)],
            "project": [gs.Project(sae, FEATURE, **every)],
            "clamp": [gs.Clamp(sae, FEATURE, TO, **every)],
            "ablate": [gs.Ablate(sae, FEATURE, **every)],
            "splice": [gs.Splice(sae, error=False, **every)],
            "splice_clamped": [gs.Splice(sae, error=False, **every), gs.Clamp(sae, FEATURE, TO, **every)],
            "splice_error": [gs.Splice(sae, error=True, **every)],
            "replace": [gs.Replace(self.transcoder, **every)],
        }


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A model and two SAEs in folders, then one process of SAELens's that edits it by its own means."""
    root = tmp_path_factory.mktemp("edits")
    model = tiny_model(request.param)
    model.hf.set_attn_implementation("eager")  # the bridge's own; another kernel rounds otherwise
    model.hf.save_pretrained(root / "model")
    model.tokenizer.save_pretrained(root / "model")
    sae = random_sae(model, "1.res")
    transcoder = random_sae(model, "1.transcoder", site_out="1.mlp")
    skip = random_sae(model, "1.transcoder", site_out="1.mlp", skip=True)
    for name, one in (("sae", sae), ("transcoder", transcoder), ("skip", skip)):
        gs.save_sae(one, root / name)
    ids = model.tokens(TEXT).ids
    numbers = json.dumps({"feature": FEATURE, "by": BY, "to": TO, "new": NEW})
    save_file({"ids": ids}, root / "inputs.safetensors", {"numbers": numbers})
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PEER, SCRIPT, root], check=False, capture_output=True, text=True, timeout=280, env=os.environ | offline
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Both(model, sae, transcoder, skip, ids, load_file(root / "answers.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["clean", "steer", "project", "clamp", "ablate", "splice", "splice_clamped", "splice_error", "replace"],
)
def test_the_same_edit_gives_the_same_logits(both: Both, name: str) -> None:
    with both.model.edited(*both.edits()[name]):
        ours = both.model.logits(both.ids)
    torch.testing.assert_close(ours, both.theirs[name], atol=2e-4, rtol=2e-4)
    if name not in {"clean", "splice_error"}:
        assert not torch.allclose(ours, both.theirs["clean"], atol=0.05)


def test_the_same_text_is_written(both: Both) -> None:
    with both.model.edited(*both.edits()["steer"]):
        steps = list(both.model.stream(both.ids, max_new_tokens=NEW))
    ours = torch.stack([step.ids for step in steps], 1)
    assert ours.tolist() == both.theirs["written"][:, : ours.shape[1]].tolist()


def test_their_skip_transcoders_lose_the_skip_inside_the_model(both: Both) -> None:
    """Their wrapper calls encode and decode, and W_skip is in neither: what runs is the transcoder without its skip."""
    with both.model.edited(gs.Replace(both.skip, every_token=True)):
        whole = both.model.logits(both.ids)
    assert not torch.allclose(whole, both.theirs["replace_skip"], atol=0.5)
    kept = both.skip.W_skip.clone()
    both.skip.W_skip.zero_()
    with both.model.edited(gs.Replace(both.skip, every_token=True)):
        torch.testing.assert_close(both.model.logits(both.ids), both.theirs["replace_skip"], atol=2e-4, rtol=2e-4)
    both.skip.W_skip.copy_(kept)


def test_with_the_error_term_theirs_changes_the_last_bits_and_ours_none(both: Both) -> None:
    """x − x̂ + x̂ is x up to rounding; a difference that is added is x itself where the difference is nothing."""
    with both.model.edited(*both.edits()["splice_error"]):
        spliced = both.model.logits(both.ids)
    assert torch.equal(spliced, both.model.logits(both.ids))
    assert not torch.equal(both.theirs["splice_error"], both.theirs["clean"])
