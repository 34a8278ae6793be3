"""Cross-layer transcoders as circuit-tracer makes and writes them, with its own answers. Runs in an environment of its,
not in ours: `python cross_layer.py ROOT` writes ROOT/NAME, a folder, and ROOT/NAME.safetensors.
"""

import sys
from pathlib import Path

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from safetensors.torch import save_file

LAYERS, F, D, TOKENS = 4, 48, 16, 60
CONFIG = "model_kind: cross_layer_transcoder\nmodel_name: google/gemma-2-2b\nfeature_input_hook: hook_resid_mid\n"
CONFIG += "feature_output_hook: hook_mlp_out\nscan: x\n"


def made(gate: str, seed: int) -> CrossLayerTranscoder:
    cpu = torch.device("cpu")
    clt = CrossLayerTranscoder(LAYERS, F, D, gate, lazy_decoder=False, device=cpu, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in clt.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * (0.4 if weight.ndim < 3 else 0.25))
        if gate == "jump_relu":
            threshold = clt.activation_function.threshold
            threshold.copy_(torch.rand(threshold.shape, generator=draw))
    return clt


def main(root: Path) -> None:
    x = torch.randn(LAYERS, TOKENS, D, generator=torch.Generator().manual_seed(9)) + 0.3
    for seed, gate in enumerate(("relu", "jump_relu")):
        clt = made(gate, seed)
        clt.to_safetensors(str(root / gate))
        (root / gate / "config.yaml").write_text(CONFIG)
        with torch.no_grad():
            features, _ = clt.encode_sparse(x, zero_positions=slice(0, 0))
            answer = {"x": x, "features": features.to_dense(), "recon": clt.decode(features)}
        save_file({name: one.contiguous() for name, one in answer.items()}, root / f"{gate}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
