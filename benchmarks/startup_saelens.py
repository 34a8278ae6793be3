"""SAELens's side of `startup.py`, in SAELens's environment: `look MODEL SAE PROMPT REPEATS STARTED`.

The same look twice: through SAELens's own TransformerLens bridge, and through a plain PyTorch hook on the same model,
the leanest way there is to feed an SAE of SAELens's.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from startup_clock import Stopwatch, rss_mb, since, warm


class _Enough(Exception):
    pass


def look(model_folder: str, sae_folder: str, prompt: str, repeats: str, started: str) -> None:
    """A first look and then warm ones; ends with one line of JSON."""
    watch = Stopwatch()
    import torch
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformers import AutoTokenizer, LlamaForCausalLM

    figures: dict[str, Any] = {"import_all": watch.read(), "import_all_mb": rss_mb()}
    watch = Stopwatch()
    bridge = SAETransformerBridge.boot_transformers(model_folder, device="cpu", dtype=torch.bfloat16)
    sae = SAE.load_from_disk(sae_folder)
    figures["load"] = watch.read()
    layer = int(sae.cfg.metadata.hook_name.split(".")[1])
    answers = {}
    with torch.no_grad():
        acts = _through_bridge(bridge, layer)
        print(_look(sae, bridge.tokenizer, acts, prompt)[0])
        figures["first_table"] = since(started)
        figures["warm"] = warm(lambda: _look(sae, bridge.tokenizer, acts, prompt), int(repeats))  # noqa: F821 (deleted below)
        figures["look_mb"] = rss_mb()
        answers["bridge"] = _look(sae, bridge.tokenizer, acts, prompt)[1]
        del bridge, acts
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        acts = _through_hook(LlamaForCausalLM.from_pretrained(model_folder, dtype="auto").eval(), layer)
        answers["plain_hook"] = _look(sae, tokenizer, acts, prompt)[1]
        figures["warm_plain_hook"] = warm(lambda: _look(sae, tokenizer, acts, prompt), int(repeats))
    said = {
        "figures": figures,
        "answers": answers,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("sae-lens", "transformer-lens", "torch", "transformers")},
    }
    print(json.dumps(said))


def _through_bridge(bridge: Any, layer: int) -> Callable[[Any], Any]:
    point = f"blocks.{layer}.hook_out"  # what the bridge calls hook_resid_post

    def acts(ids: Any) -> Any:
        _, cache = bridge.run_with_cache(ids, names_filter=[point], stop_at_layer=layer + 1)
        return cache[point][0]

    return acts


def _through_hook(model: Any, layer: int) -> Callable[[Any], Any]:
    seen: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Enough

    model.model.layers[layer].register_forward_hook(keep)

    def acts(ids: Any) -> Any:
        with contextlib.suppress(_Enough):
            model(ids, use_cache=False)
        return seen.pop()[0]

    return acts


def _look(sae: Any, tokenizer: Any, acts_of: Callable[[Any], Any], prompt: str) -> tuple[str, dict[str, Any]]:
    """What gemscope's look shows: each token's L0 and five features, explained variance over all but the first."""
    from rich.console import Console
    from rich.table import Table

    # The bridge's tokenizer puts a BOS in front that the model's own does not; gemscope follows the model's.
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    acts = acts_of(ids).float()
    features = sae.encode(acts)
    out = sae.decode(features)
    values, strongest = features.topk(5, dim=-1)
    l0 = (features > 0).sum(-1)
    target, error = acts[1:], acts[1:] - out[1:]
    ev = 1 - error.square().sum() / (target - target.mean(0)).square().sum()
    both = zip(strongest.tolist(), values.tolist(), strict=True)
    rows = [[(feature, value) for feature, value in zip(*row, strict=True) if value > 0] for row in both]
    table = Table("token", "L0", "strongest features (feature:activation)", box=None)
    for id_, count, row in zip(ids[0].tolist(), l0.tolist(), rows, strict=True):
        table.add_row(tokenizer.decode([id_]), str(count), "  ".join(f"{one}:{value:.1f}" for one, value in row))
    text = io.StringIO()
    console = Console(file=text, width=120, color_system=None)
    console.print(table)
    console.print(f"L0 {l0[1:].float().mean():.1f} per token, explained variance {ev:.4f}")
    return text.getvalue(), {
        "features": [[feature for feature, _ in row] for row in rows],
        "explained_variance": ev.item(),
    }


if __name__ == "__main__":
    look(*sys.argv[2:])
