"""What ranks that train one SAE together say to each other in a step, counted, beside the formula.

    torchrun --nproc-per-node 2 benchmarks/ranks.py          D 256, F 4,096, batch 1,024, L0 50

The peer is data parallel training of the same SAE, by its formula: every weight's gradient is summed.
"""

from __future__ import annotations

import torch

from gemscope.training.config import TrainConfig
from gemscope.training.fold import Scale
from gemscope.training.group import joined
from gemscope.training.run import Run
from gemscope.world import World

D, F, B, L0 = 256, 4096, 1024, 50
KINDS: dict[str, dict[str, object]] = {
    "jumprelu": {},
    "batchtopk": {"architecture": "batchtopk"},
    "topk": {"architecture": "topk"},
    "standard": {"architecture": "standard", "sparsity": 0.05},
    "gated": {"architecture": "gated", "sparsity": 0.05},
    "jumprelu, matryoshka of 3": {"matryoshka": [0.25, 0.5]},
    "jumprelu, silent features": {"auxiliary": 1 / 32, "patience": 1},
}


def main() -> None:
    """Counts the second half of eight steps of each kind."""
    with joined(World.together()) as group:
        x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
        scale = Scale.of(x, (D,))
        rows = scale(x)
        if group.first:
            print(f"{group.size} ranks, D {D}, F {F:,}, batch {B:,}, L0 {L0}; MB a step that each rank gives")
            print(f"{'':28}{'counted':>9}{'B·D·4':>9}{'ratio':>7}{'gradients':>11}")
        for name, settings in KINDS.items():
            given = {"auxiliary": 0.0, **settings}
            config = TrainConfig.of(
                {"width": F, "target_l0": L0, "batch": B, "rows": 8 * B, "anneal": 0.0, "lr": 1e-4, **given}
            )
            run = Run(config, scale, scale, same=True, group=group)
            run.begin(rows)
            for step in range(8):
                if step == 4:
                    group.sent = 0
                run.fired_at[::8] = run.done - 20 if given["auxiliary"] else run.fired_at[::8]
                run.advance(rows, rows)
            counted, sum_ = group.sent / 4e6, B * D * 4 / 1e6
            gradients = (2 * F * D + 2 * F + D) * 4 / 1e6
            if group.first:
                print(f"{name:28}{counted:9.2f}{sum_:9.2f}{counted / sum_:7.2f}{gradients:11.2f}")


if __name__ == "__main__":
    main()
