"""gemscope's side of `startup.py`, in gemscope's environment.

`model` | `sae MODEL TO PROMPT` | `look MODEL SAE PROMPT REPEATS STARTED`
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from startup_clock import Stopwatch, rss_mb, since, warm


def look(model_folder: str, sae_folder: str, prompt: str, repeats: str, started: str) -> None:
    """A first look and then warm ones; ends with one line of JSON."""
    watch = Stopwatch()
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401  (`load_model` would import them)

    from gemscope import load_model, load_sae, look

    figures: dict[str, Any] = {"import_all": watch.read(), "import_all_mb": rss_mb()}
    watch = Stopwatch()
    model, sae = load_model(model_folder), load_sae(sae_folder)
    figures["load"] = watch.read()
    print(look(model, sae, prompt))
    figures["first_table"] = since(started)
    figures["warm"] = warm(lambda: str(look(model, sae, prompt)), int(repeats))
    figures["look_mb"] = rss_mb()
    seen = look(model, sae, prompt)
    answer = {
        "features": [[one.feature for one in token.features] for token in seen.tokens],
        "explained_variance": seen.explained_variance,
    }
    said = {
        "figures": figures,
        "answers": {"look": answer},
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("gemscope", "torch", "transformers")},
    }
    print(json.dumps(said))


def model() -> None:
    """Where the bundled model lies as a plain folder that both tools read, converted now if it never was."""
    from gemscope.activations.bundled import smollm2_folder

    print(json.dumps({"folder": str(smollm2_folder())}))


def sae(model_folder: str, to: str, prompt: str) -> None:
    """A random SAE of the bundled one's size, its threshold such that about 50 features fire on a token."""
    import torch

    from gemscope import SAE, load_model, save_sae

    torch.manual_seed(0)
    acts = load_model(model_folder).capture(prompt, ["15.res"])["15.res"]
    made = SAE(acts.values.shape[-1], 8192, site="15.res")
    made.W_enc.normal_().div_(made.W_enc.norm(dim=0))
    made.W_dec.copy_(made.W_enc.T)
    pre = acts.values[acts.counted].float() @ made.W_enc
    made.threshold.fill_(pre.quantile(1 - 50 / made.d_sae, dim=-1).mean())
    save_sae(made, to)


if __name__ == "__main__":
    {"look": look, "model": model, "sae": sae}[sys.argv[1]](*sys.argv[2:])
