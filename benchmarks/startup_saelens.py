"""SAELens's side of `startup.py`, in SAELens's environment: `look MODEL SAE PROMPT N`.

The same look twice: through SAELens's own TransformerLens bridge, and through a plain PyTorch hook on the same model,
the leanest way there is to feed an SAE of SAELens's.
"""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import version
from typing import Any

from startup_clock import Stopwatch, rss_mb, since_start, warm


class _Enough(Exception):
    """What the SAE needs has been seen."""


def look(model_folder: str, sae_folder: str, prompt: str, repeats: str) -> None:
    """A first look and then warm ones; prints the last table's figures as one line of JSON."""
    watch = Stopwatch()
    import sae_lens
    import torch
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    loading = Stopwatch()
    found: dict[str, Any] = {"import": watch.read(), "import_rss_mb": rss_mb()}
    bridge = SAETransformerBridge.boot_transformers(model_folder, device="cpu", dtype=torch.bfloat16)
    sae = sae_lens.SAE.load_from_disk(sae_folder)
    found["load"] = loading.read()
    tokenizer = bridge.tokenizer
    layer = int(sae.cfg.metadata.hook_name.split(".")[1])
    point = f"blocks.{layer}.hook_out"  # what the bridge calls hook_resid_post

    def through_bridge() -> tuple[Any, Any]:
        ids = _ids(tokenizer, prompt)
        _, cache = bridge.run_with_cache(ids, names_filter=[point], stop_at_layer=layer + 1)
        return ids[0], cache[point][0]

    with torch.no_grad():
        table, _ = _read(sae, tokenizer, *through_bridge())
        found["first_table"] = since_start()
        print(table)
        found["warm"] = warm(lambda: _read(sae, tokenizer, *through_bridge()), int(repeats))
        found["rss_mb"] = rss_mb()
        answers = {"bridge": _read(sae, tokenizer, *through_bridge())[1]}
        del bridge
        through_hook = _plain_hook(model_folder, layer, tokenizer, prompt)
        answers["plain_hook"] = _read(sae, tokenizer, *through_hook())[1]
        found["warm_plain_hook"] = warm(lambda: _read(sae, tokenizer, *through_hook()), int(repeats))
    names = ("sae-lens", "transformer-lens", "torch", "transformers")
    found |= {"answers": answers, "threads": torch.get_num_threads(), "versions": {name: version(name) for name in names}}
    print(json.dumps(found))


def _ids(tokenizer: Any, prompt: str) -> Any:
    # The bridge's tokenizer puts a BOS in front that the model's own does not, and gemscope follows the model's.
    return tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids


def _plain_hook(model_folder: str, layer: int, tokenizer: Any, prompt: str) -> Any:
    """The model as transformers loads it, stopped behind the layer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto").eval()
    seen: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Enough

    model.model.layers[layer].register_forward_hook(keep)

    def through_hook() -> tuple[Any, Any]:
        ids = _ids(tokenizer, prompt)
        try:
            model(ids, use_cache=False)
        except _Enough:
            pass
        return ids[0], seen.pop()[0]

    return through_hook


def _read(sae: Any, tokenizer: Any, ids: Any, acts: Any, k: int = 5) -> tuple[str, dict[str, Any]]:
    """What gemscope's look shows: per token L0 and the strongest features, explained variance over all but the first."""
    from rich.console import Console
    from rich.table import Table

    acts = acts.float()
    features = sae.encode(acts)
    out = sae.decode(features)
    values, strongest = features.topk(k, dim=-1)
    l0 = (features > 0).sum(-1)
    target, error = acts[1:], acts[1:] - out[1:]
    ev = 1 - error.square().sum() / (target - target.mean(0)).square().sum()
    table = Table("token", "L0", "strongest features (feature:activation)", box=None)
    rows = [[(f, v) for f, v in zip(*row, strict=True) if v > 0] for row in zip(strongest.tolist(), values.tolist(), strict=True)]
    for id_, count, row in zip(ids.tolist(), l0.tolist(), rows, strict=True):
        table.add_row(tokenizer.decode([id_]), str(count), "  ".join(f"{f}:{v:.1f}" for f, v in row))
    text = io.StringIO()
    console = Console(file=text, width=120, color_system=None)
    console.print(table)
    console.print(f"L0 {l0[1:].float().mean():.1f} per token, explained variance {ev:.4f}")
    return text.getvalue(), {"features": [[f for f, _ in row] for row in rows], "ev": ev.item()}


if __name__ == "__main__":
    look(*sys.argv[2:])
