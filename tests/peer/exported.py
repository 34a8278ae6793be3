"""What sparsify and circuit-tracer make of what gemscope saved in their formats. Runs in an environment of theirs, not in
ours: `python exported.py sparsify|circuit-tracer ROOT` writes for each NAME in ROOT/saved, given ROOT/x.safetensors,
ROOT/answers/NAME.safetensors: `features` and `out`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def by_sparsify(run: Path, x: Tensor) -> dict[str, Tensor]:
    from sparsify import SparseCoder

    ((hookpoint, coder),) = SparseCoder.load_many(str(run), local=True).items()
    (folder,) = (path for path in run.iterdir() if path.is_dir())
    assert hookpoint == folder.name
    x = x.to(coder.dtype)
    encoded = coder.encode(x)
    features = torch.zeros(len(x), coder.num_latents).scatter(-1, encoded.top_indices, encoded.top_acts.float())
    return {"features": features, "out": coder(x).sae_out}


def by_circuit_tracer(folder: Path, x: Tensor) -> dict[str, Tensor]:
    import yaml
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config.pop("model_kind") == "transcoder_set"
    config.pop("model_name")
    files = sorted(folder.glob("layer_*.safetensors"))
    found = load_transcoder_set(dict(enumerate(map(str, files))), device=torch.device("cpu"), **config)
    layers = torch.stack([x] * len(files))
    features = found.encode(layers)
    return {"features": features, "out": found.decode(features, layers)}


def main(tool: str, root: Path) -> None:
    """Every folder."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    x = load_file(root / "x.safetensors")["x"]
    (root / "answers").mkdir(exist_ok=True)
    answer = {"sparsify": by_sparsify, "circuit-tracer": by_circuit_tracer}[tool]
    for folder in sorted((root / "saved").iterdir()):
        found = {name: tensor.float().contiguous() for name, tensor in answer(folder, x).items()}
        save_file(found, root / "answers" / f"{folder.name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
