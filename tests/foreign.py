"""Examples as Gemma Scope 2 publishes them."""

import numpy as np
import torch

F, EACH, ROWS, LENGTH = 150, 60, 90, 128

ADDRESS = "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium"


def examples_file(seed: int = 0) -> dict[str, torch.Tensor]:
    chance = np.random.default_rng(seed)
    values = chance.gamma(2, 5, (F, EACH)).astype(np.float32)
    seqs = chance.integers(0, 60, (F, EACH))  # the rows behind the 60th are of no example
    positions = chance.integers(1, LENGTH, (F, EACH))
    values[5] = 0  # a dead one
    values[6, 3:] = 0  # one that fires three times
    seqs[7, :2], positions[7, :2], values[7, :2] = 4, (50, 52), (500, 400)  # two in one window
    return {
        "top_tokens": torch.from_numpy(chance.integers(0, 300, (F, 10))).int(),
        "top_logits": torch.from_numpy(np.sort(chance.normal(0, 1, (F, 10)).astype(np.float32))),
        "bottom_tokens": torch.from_numpy(chance.integers(0, 300, (F, 10))).int(),
        "bottom_logits": torch.from_numpy(chance.normal(-2, 1, (F, 10)).astype(np.float32)),
        "activations": torch.from_numpy(values).bfloat16(),
        "seq_ids": torch.from_numpy(seqs).int(),
        "positions": torch.from_numpy(positions).int(),
        "feature_frequencies": torch.from_numpy(np.where(np.arange(F) == 5, 0, 0.02).astype(np.float32)),
        "tokens": torch.from_numpy(chance.integers(0, 300, (ROWS, LENGTH))).int(),
    }
