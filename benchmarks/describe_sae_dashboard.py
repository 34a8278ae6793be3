"""sae-dashboard's side of `describe.py`, in its own environment: its Neuronpedia runner on the model, the SAE and the
rows that `describe_gemscope.py` made: `FOLDER TOKENS BATCHES` (0: all batches of features).

The runner's own `run` does the work, with its defaults. Its constructor is gone around, for it fetches model and data
from the Hub; so is TransformerLens's folding of weights, so that both tools read the same activations.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure


def run(folder: str, tokens: str, batches: str) -> dict[str, Any]:
    """The first so many batches of 128 features: seconds of each, memory above what was loaded, what came out."""
    import numpy as np
    import torch
    from sae_dashboard.neuronpedia import neuronpedia_runner as theirs
    from sae_lens import SAE

    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    place, size = Path(folder), int(tokens)
    world = json.loads((place / "world.json").read_text())
    model = _model(place, world)
    sae = SAE.load_from_disk(str(place / "sae"))
    rows = torch.from_numpy(np.load(place / f"rows-{size}.npy"))
    with tempfile.TemporaryDirectory() as out, contextlib.chdir(out):
        config = theirs.NeuronpediaRunnerConfig(
            sae_set="res",
            sae_path="random",
            outputs_dir=out,
            n_prompts_total=len(rows),
            n_tokens_in_prompt=world["length"],
            end_batch=int(batches) - 1 if int(batches) else None,
            ignore_positions=[0],
            sae_dtype="float32",
            model_dtype="float32",
            sae_device="cpu",
        )
        runner = theirs.NeuronpediaRunner.__new__(theirs.NeuronpediaRunner)
        runner.cfg, runner.sae, runner.model = config, sae, model
        runner.model_id, runner.layer, runner.hook_name = (
            "gpt2",
            world["layer"],
            f"blocks.{world['layer']}.hook_resid_post",
        )
        runner.activations_store = None
        runner.cached_activations_dir = Path(out) / "cached_activations"
        end = world["vocabulary"] - 1
        model.tokenizer = SimpleNamespace(
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            padding_side="right",
            vocab={f"w{id_}": id_ for id_ in range(end)} | {"<|endoftext|>": end},
        )
        runner.vocab_dict = runner.get_vocab_dict()
        torch.save(rows, Path(out) / f"tokens_{len(rows)}.pt")  # where it looks for them before it asks the Hub
        before = measure.resident_mb()
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            peak = measure.peak_mb(runner.run) if measure.can_weigh() else runner.run()
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        files = sorted(Path(out).glob("batch-*.json"), key=lambda path: int(path.stem.split("-")[1]))
        ends = [path.stat().st_mtime for path in files]
        features = [one for path in files for one in json.loads(path.read_text())["features"]]
        size_mb = sum(path.stat().st_size for path in files) / 1e6
    return found | {
        "before_mb": before,
        "peak_mb": None if peak is None else peak - before,
        "batch_s": [after - before for before, after in pairwise(ends)],
        "tokens": rows.numel(),
        "features": len(features),
        "d_sae": world["d_sae"],
        "written_mb": size_mb,
        "density": {str(one["feature_index"]): one["frac_nonzero"] for one in features},
        "max": {
            str(one["feature_index"]): max((max(a["values"]) for a in one["activations"]), default=0.0)
            for one in features
        },
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("sae-dashboard", "sae-lens", "transformer-lens", "torch")},
    }


def _model(folder: Path, world: dict[str, Any]) -> Any:
    import transformers
    from sae_lens import HookedSAETransformer
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = HookedTransformerConfig(
        n_layers=world["layers"],
        d_model=world["d_model"],
        n_ctx=1024,
        n_heads=max(1, world["d_model"] // 64),
        d_head=64,
        d_mlp=4 * world["d_model"],
        d_vocab=world["vocabulary"],
        act_fn="gelu_new",
        normalization_type="LN",
        eps=1e-5,
        default_prepend_bos=True,
    )
    hf = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.d_vocab, n_embd=config.d_model, n_layer=config.n_layers, n_head=config.n_heads
        )
    )
    hf.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    hf.tie_weights()
    model = HookedSAETransformer(config)
    model.load_state_dict(convert_gpt2_weights(hf, config), strict=False)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
