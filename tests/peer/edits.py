"""What SAELens and TransformerLens make of edits. Runs in SAELens's own environment, not in ours: `python edits.py ROOT`.

Reads ROOT/model (a folder of transformers'), ROOT/sae, ROOT/transcoder, ROOT/skip (a transcoder with an affine skip) and
ROOT/inputs.safetensors (`ids`, and the numbers of the edits in its metadata); writes ROOT/answers.safetensors: logits of each edit, made with the bridge's own
hooks, and the tokens that its own loop writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def main(root: Path) -> None:
    """Every edit that both can do."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with safe_open(root / "inputs.safetensors", framework="pt") as file:
        ids, numbers = file.get_tensor("ids"), json.loads(file.metadata()["numbers"])
    bridge = SAETransformerBridge.boot_transformers(str(root / "model"), device="cpu", dtype=torch.float32)
    sae = SAE.load_from_disk(root / "sae").eval()
    transcoder, skip = (SAE.load_from_disk(root / name).eval() for name in ("transcoder", "skip"))
    feature, by, to = numbers["feature"], numbers["by"], numbers["to"]
    # The bridge's own name: a hook at the alias `blocks.1.hook_resid_post` is taken without a word and never called.
    point = "blocks.1.hook_out"
    calls: list[int] = []

    def added(x: Tensor, hook: object) -> Tensor:
        calls.append(x.shape[1])
        return x + by * sae.W_dec[feature]

    def without_direction(x: Tensor, hook: object) -> Tensor:
        d = sae.W_dec[feature] / sae.W_dec[feature].norm()
        return x - (x @ d)[..., None] * d

    def clamped(f: Tensor, hook: object) -> Tensor:
        f[..., feature] = to
        return f

    def silenced(f: Tensor, hook: object) -> Tensor:
        f[..., feature] = 0.0
        return f

    def with_sae(one: Any, hook: Callable[..., Tensor] | None, *, error: bool) -> Tensor:
        hooks = [] if hook is None else [(bridge.get_sae_hook_name(one), hook)]
        with bridge.saes(saes=[one], use_error_term=error):
            return bridge.run_with_hooks(ids, fwd_hooks=hooks)

    # Before any SAE has been attached: once one was taken off again, hooks at its point are never called.
    length = ids.shape[1]
    # Without its cache: with transformers 5.24 its cached steps part from its own whole passes.
    plain = {"do_sample": False, "stop_at_eos": False, "use_past_kv_cache": False}
    with bridge.hooks(fwd_hooks=[(point, added)]):
        whole = bridge.generate(ids, max_new_tokens=numbers["new"], verbose=False, return_type="tokens", **plain)
    assert len(calls) == numbers["new"], "the hook was not called for every token"
    answers = {
        "written": whole[:, length:],
        "clean": bridge(ids),
        "steer": bridge.run_with_hooks(ids, fwd_hooks=[(point, added)]),
        "project": bridge.run_with_hooks(ids, fwd_hooks=[(point, without_direction)]),
        "clamp": with_sae(sae, clamped, error=True),
        "ablate": with_sae(sae, silenced, error=True),
        "splice": with_sae(sae, None, error=False),
        "splice_clamped": with_sae(sae, clamped, error=False),
        "splice_error": with_sae(sae, None, error=True),
        "replace": with_sae(transcoder, None, error=False),
        "replace_skip": with_sae(skip, None, error=False),
    }
    assert len(calls) == numbers["new"] + 1, "the hook was not called"
    save_file({name: value.contiguous() for name, value in answers.items()}, root / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
