"""What SAELens's evals make of an SAE. Runs in SAELens's own environment, not in ours: `python score.py ROOT`.

Reads ROOT/model (a folder of transformers'), ROOT/sae, ROOT/transcoder and ROOT/inputs.safetensors (`ids` [B, T]); writes
ROOT/answers.json: the figures of `run_evals` with all tokens and with special ones excluded, and its KL token by token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.evals import get_eval_everything_config, get_recons_loss, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch import Tensor

POINT = "blocks.1.hook_out"
"""The bridge's own name of the site."""
ALIAS = "blocks.1.hook_resid_post"
"""TransformerLens's old name of it, which SAEs carry."""


class Rows:
    """As much of an ActivationsStore as the evals ask for: the same rows each time."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.store_batch_size_prompts, self.context_size = ids.shape

    def get_batch_tokens(self, n: int) -> Tensor:
        assert n == len(self.ids)
        return self.ids

    def reset_input_dataset(self) -> None:
        pass


def main(root: Path) -> None:
    """Everything in one go: loading takes longer than the figures."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ids = load_file(root / "inputs.safetensors")["ids"]
    model = SAETransformerBridge.boot_transformers(str(root / "model"), device="cpu", dtype=torch.float32)
    sae = SAE.load_from_disk(root / "sae").eval()
    answers: dict[str, Any] = {}
    for name, point in (("point", POINT), ("alias", ALIAS)):
        sae.cfg.metadata.hook_name = point
        answers[name] = {
            "all": evaluated(sae, model, ids, exclude=False),
            "content": evaluated(sae, model, ids, exclude=True),
        }
    sae.cfg.metadata.hook_name = POINT
    for name, ignored in (("all", None), ("content", sorted(model.tokenizer.all_special_ids))):
        by_token = get_recons_loss(
            sae, model, ActivationScaler(), ids, compute_kl=True, compute_ce_loss=False, ignore_tokens=ignored
        )
        answers[f"kl_{name}"] = {key: value.tolist() for key, value in by_token.items()}
    transcoder = SAE.load_from_disk(root / "transcoder").eval()
    answers["transcoder_reads"] = transcoder.cfg.metadata.hook_name
    transcoder.cfg.metadata.hook_name = "blocks.1.ln2.hook_out"
    answers["transcoder"] = evaluated(transcoder, model, ids, exclude=False)
    (root / "answers.json").write_text(json.dumps(answers))


def evaluated(sae: Any, model: Any, ids: Tensor, *, exclude: bool) -> dict[str, Any]:
    """The figures of one run, in one dictionary, and the densities; what it raised where it raised."""
    config = get_eval_everything_config(
        batch_size_prompts=len(ids), n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1
    )
    try:
        figures, of_features = run_evals(
            sae,
            Rows(ids),
            model,
            ActivationScaler(),
            config,
            exclude_special_tokens=exclude,  # type: ignore[arg-type]
        )
    except (ZeroDivisionError, KeyError) as error:
        return {"raised": type(error).__name__}
    flat = {name: value for group in figures.values() for name, value in group.items()}
    return {**flat, "feature_density": of_features["feature_density"]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
