"""gemscope's side of `startup.py`, in gemscope's environment: `model`, `sae MODEL TO PROMPT`, `look MODEL SAE PROMPT N`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from startup_clock import Stopwatch, rss_mb, since_start, warm


def look(model_folder: str, sae_folder: str, prompt: str, repeats: str) -> None:
    """A first look and then warm ones; prints the last table's figures as one line of JSON."""
    watch = Stopwatch()
    import torch

    from gemscope import load_model, load_sae, look

    loading = Stopwatch()
    found: dict[str, object] = {"import": watch.read(), "import_rss_mb": rss_mb()}
    model, sae = load_model(model_folder), load_sae(sae_folder)
    found["load"] = loading.read()
    table = str(look(model, sae, prompt))
    found["first_table"] = since_start()
    print(table)
    found["warm"] = warm(lambda: str(look(model, sae, prompt)), int(repeats))
    seen = look(model, sae, prompt)
    found |= {
        "rss_mb": rss_mb(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("gemscope", "torch", "transformers")},
        "answer": {"features": [[one.feature for one in t.features] for t in seen.tokens], "ev": seen.explained_variance},
    }
    print(json.dumps(found))


def model() -> None:
    """Where the bundled model lies as a plain folder that both tools read, converted now if it never was."""
    from gemscope.activations.bundled import smollm2_folder

    print(json.dumps({"folder": str(smollm2_folder())}))


def sae(model_folder: str, to: str, prompt: str) -> None:
    """A random SAE of the bundled one's size, its threshold set so that about 50 features fire per token."""
    import torch

    from gemscope import SAE, load_model, save_sae

    torch.manual_seed(0)
    acts = load_model(model_folder).capture(prompt, ["15.res"])["15.res"]
    made = SAE(acts.values.shape[-1], 6144, site="15.res")
    made.W_enc.normal_().div_(made.W_enc.norm(dim=0))
    made.W_dec.copy_(made.W_enc.T)
    pre = acts.values[acts.counted].float() @ made.W_enc
    made.threshold.fill_(pre.quantile(1 - 50 / made.d_sae, dim=-1).mean())
    save_sae(made, to)


if __name__ == "__main__":
    {"look": look, "model": model, "sae": sae}[sys.argv[1]](*sys.argv[2:])
