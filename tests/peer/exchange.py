"""What SAELens makes of folders. Runs in SAELens's own environment, not in ours: `python exchange.py ROOT`.

Reads ROOT/ours/* on ROOT/inputs/*.safetensors; writes ROOT/theirs/*, ROOT/refused/* and, for every folder that it could
read, ROOT/answers/THAT/FOLDER.safetensors: the input `x`, its `features`, their `decoded` and the `forward` pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import SAE, SAETrainer
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_SAE, D_OUT, HEADS, TOKENS = 16, 48, 12, 4, 256
SITE = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
HEADS_SITE = {"model_name": "gpt2", "hook_name": "blocks.3.attn.hook_z"}
TRANSCODER_SITE = {
    "model_name": "gpt2",
    "hook_name": "blocks.3.ln2.hook_normalized",
    "hook_name_out": "blocks.3.hook_mlp_out",
}


def main(root: Path) -> None:
    """Reads what is there for it, then writes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for folder in sorted((root / "ours").iterdir()):
        answer(root, folder, load_file(root / "inputs" / f"{folder.name}.safetensors")["x"])
    theirs = root / "theirs"
    write_inference(theirs)
    write_old(theirs)
    for folder in sorted(theirs.iterdir()):
        answer(root, folder, inputs())
    # A checkpoint is compared with the inference SAE that SAELens itself makes of the same run.
    for name in CHECKPOINTS:
        write_checkpoint(root, name)
    write_refused(root / "refused")


def answer(root: Path, folder: Path, x: Tensor) -> None:
    """Writes what SAELens computes with a folder."""
    path = root / "answers" / folder.relative_to(root).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    sae = SAE.load_from_disk(folder)
    is_split = sae.cfg.reshape_activations == "hook_z"
    with torch.no_grad():
        given = x.unflatten(-1, (HEADS, -1)) if is_split else x
        features = sae.encode(given)
        found = {"decoded": sae.decode(features), "forward": sae(given)}
    if is_split:
        found = {key: value.flatten(-2) for key, value in found.items()}
    found |= {"x": x, "features": features}
    metadata = {key: value for key, value in sae.cfg.metadata.to_dict().items() if isinstance(value, str)}
    save_file(
        {key: value.float().contiguous() for key, value in found.items()},
        path,
        {"architecture": sae.cfg.architecture(), **metadata},
    )


def inputs() -> Tensor:
    """Activations with a mean, as real ones have."""
    return 1.5 * torch.randn(TOKENS, D_IN) + 0.5


def randomised(sae: Any) -> Any:
    """The same SAE with no weight left at a value that hides a mistake: no zero bias, no decoder row of norm 1."""
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            if name == "W_dec":
                weight.copy_(torch.randn_like(weight) * (0.2 + torch.rand(weight.shape[0], 1)))
            elif name == "threshold":
                weight.copy_(torch.rand_like(weight) - 0.1)
            else:
                weight.copy_(torch.randn_like(weight) * 0.4)
    return sae


def config(of: str, **options: Any) -> Any:
    """A configuration by the name of its class."""
    metadata = SAEMetadata(**options.pop("site", SITE))
    options = {"d_in": D_IN, "d_sae": D_SAE, "metadata": metadata} | options
    return getattr(sae_lens, f"{of}Config")(**options)


def made(of: str, **options: Any) -> Any:
    """A random SAE by the name of its class."""
    return randomised(getattr(sae_lens, of)(config(of, **options)))


def write_inference(theirs: Path) -> None:
    """Every kind of folder that SAELens writes for use."""
    transcoder = {"d_out": D_OUT, "site": TRANSCODER_SITE, "apply_b_dec_to_input": False}
    kinds: dict[str, Any] = {
        "standard": made("StandardSAE"),
        "standard_plain": made("StandardSAE", apply_b_dec_to_input=False),
        "standard_heads": made("StandardSAE", site=HEADS_SITE, reshape_activations="hook_z"),
        "jumprelu": made("JumpReLUSAE"),
        "topk": made("TopKSAE", k=5, rescale_acts_by_decoder_norm=False),
        "topk_rescaled": made("TopKSAE", k=5, rescale_acts_by_decoder_norm=True),
        "gated": made("GatedSAE"),
        "layer_norm": made("StandardSAE", normalize_activations="layer_norm"),
        "constant_norm": made("TopKSAE", k=5, normalize_activations="constant_norm_rescale"),
        "transcoder": made("Transcoder", **transcoder),
        "skip_transcoder": made("SkipTranscoder", **transcoder),
        "jumprelu_transcoder": made("JumpReLUTranscoder", **transcoder),
        "jumprelu_skip_transcoder": made("JumpReLUSkipTranscoder", **transcoder),
    }
    for name, sae in kinds.items():
        sae.save_model(theirs / name)
    for name, of in (("batchtopk", "BatchTopKTrainingSAE"), ("matryoshka", "MatryoshkaBatchTopKTrainingSAE")):
        widths = {"matryoshka_widths": [D_SAE // 4, D_SAE]} if name == "matryoshka" else {}
        sae = made(of, k=4, **widths)
        sae.topk_threshold.fill_(0.7)
        sae.save_inference_model(theirs / name)


def write_old(theirs: Path) -> None:
    """Folders as versions before 6 left them: other names, no version, a scaling factor of ones."""
    for name, changes in {
        "old": {"hook_point": SITE["hook_name"], "normalize_activations": False},
        "old_topk": {
            "hook_name": SITE["hook_name"],
            "sae_lens_version": "4.1.0",
            "architecture": "standard",
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 5},
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
        },
        "topk_of_5": {
            "hook_name": SITE["hook_name"],
            "sae_lens_training_version": "5.11.0",
            "architecture": "topk",
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 5},
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
        },
        "old_heads": {"hook_name": HEADS_SITE["hook_name"], "normalize_activations": "none"},
    }.items():
        weights = {key: value.contiguous() for key, value in made("StandardSAE").state_dict().items()}
        weights["scaling_factor"] = torch.ones(D_SAE)
        (theirs / name).mkdir()
        save_file(weights, theirs / name / "sae_weights.safetensors")
        cfg = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "model_name": "gpt2", **changes}
        (theirs / name / "cfg.json").write_text(json.dumps(cfg))


_JUMPRELU = ("JumpReLUTrainingSAE", {"l0_coefficient": 0.1})
_BATCHTOPK = ("BatchTopKTrainingSAE", {"k": 4})
_NOT_RESCALED = ("BatchTopKTrainingSAE", {"k": 4, "rescale_acts_by_decoder_norm": False})
CHECKPOINTS = {
    "run_jumprelu": (*_JUMPRELU, "none"),
    "run_jumprelu_scaled": (*_JUMPRELU, "expected_average_only_in"),
    "run_batchtopk": (*_BATCHTOPK, "none"),
    "run_batchtopk_scaled": (*_BATCHTOPK, "expected_average_only_in"),
    "run_batchtopk_plain_scaled": (*_NOT_RESCALED, "expected_average_only_in"),
    "run_jumprelu_whitened": (*_JUMPRELU, "covariance_whitening"),
    "run_batchtopk_whitened": (*_BATCHTOPK, "covariance_whitening"),
    "run_topk_whitened": ("TopKTrainingSAE", {"k": 4}, "covariance_whitening"),
    "run_gated_whitened": ("GatedTrainingSAE", {"apply_b_dec_to_input": False}, "covariance_whitening"),
}


def write_checkpoint(root: Path, name: str) -> None:
    """A checkpoint from the middle of a short run, and the answers of the SAE that the run would end with."""
    of, options, normalize = CHECKPOINTS[name]
    sae = made(of, normalize_activations=normalize, **options)

    def batches() -> Iterator[Tensor]:
        while True:
            yield inputs()

    steps = 20
    cfg = SAETrainerConfig(
        total_training_samples=steps * TOKENS,
        train_batch_size_samples=TOKENS,
        lr=1e-3,
        lr_end=1e-3,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=4,
    )
    trainer = SAETrainer(cfg, sae, batches())
    if normalize == "expected_average_only_in":
        trainer.activation_scaler.estimate_scaling_factor(D_IN, batches(), 4)
    elif normalize == "covariance_whitening":
        trainer.activation_scaler.estimate_whitening(D_IN, batches(), 4)
    for _ in range(steps):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
    trainer.save_checkpoint(name, root / "theirs")
    if normalize == "expected_average_only_in":
        assert trainer.activation_scaler.scaling_factor is not None
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    elif normalize == "covariance_whitening":
        whitening = trainer.activation_scaler.whitening
        assert whitening is not None
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    sae.save_inference_model(root / "inference" / name)
    answer(root, root / "inference" / name, inputs())


def write_refused(refused: Path) -> None:
    """Folders whose arithmetic gemscope does not have."""
    kinds = {
        "abstopk": made("AbsTopKSAE", k=5),
        "matching_pursuit": made("MatchingPursuitSAE"),
        "whitening": made("StandardSAE", normalize_activations="covariance_whitening"),
        "scale_unsaid": made("StandardSAE", normalize_activations="expected_average_only_in"),
    }
    for name, sae in kinds.items():
        sae.save_model(refused / name)
    # The same weights, said to need no scaling: what SAELens takes the one above for.
    x = inputs()
    unscaled = refused.parent / "inference" / "unscaled"
    kinds["scale_unsaid"].cfg.normalize_activations = "none"
    kinds["scale_unsaid"].save_model(unscaled)
    answer(refused.parent, refused / "scale_unsaid", x)
    answer(refused.parent, unscaled, x)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
