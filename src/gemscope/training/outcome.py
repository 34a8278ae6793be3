"""What a run comes to: its SAE in the units of the site, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.harvest import versions
from gemscope.disk import written_aside
from gemscope.errors import NotFinite
from gemscope.features.sae import SAE, SAEInfo
from gemscope.training.fold import OF_FEATURES, folded
from gemscope.training.run import Run
from gemscope.training.source import Source


def sae_of(run: Run, source: Source, name: str, l0: float) -> SAE | None:
    """In the units of its site: unit decoder rows, scaling and centring folded in. Of several ranks each folds its own
    features, and the first gets the whole. Raises NotFinite.
    """
    tensors = _whole(run)
    if tensors is None:
        return None
    config, facts = run.config, dict(source.facts)
    topk = config.architecture == "topk"
    alone = len(source.reads) == 1
    sae = SAE(
        len(run.x.mean),
        config.width,
        len(run.y.mean),
        gate="topk" if topk else "relu" if config.architecture == "standard" else "jumprelu",
        k=round(config.target_l0) if topk else None,
        skip=config.skip,
        site=source.reads[0] if alone else None,
        site_out=source.writes[0] if alone else None,
        info=SAEInfo(
            name=name,
            model=facts.pop("model", None),
            revision=facts.pop("revision", None),
            declared_l0=round(l0, 2),
            prepend_bos=False,
            context_size=facts.pop("context_size", None),
            metadata={**facts, "training": config.to_dict(), "versions": versions()},
        ),
    )
    if sae.threshold is None:
        del tensors["threshold"]
    sae.load_state_dict(tensors)
    return sae


def _whole(run: Run) -> dict[str, Tensor] | None:
    """Its weights as an SAE's, with the first rank."""
    config = run.config
    weights, free = run.ungated.to(torch.device("cpu")), config.architecture != "topk"
    tensors = folded(weights, run.x, run.y, pre_bias=config.pre_bias, free=free)
    if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise NotFinite(f"{lost[0]} of the trained SAE holds NaN or Inf: try a lower lr than {config.lr}")
    for name, dim in OF_FEATURES.items():
        tensors[name] = run.deal.whole(tensors[name], dim, to_first=True).contiguous()
    return tensors if run.group.first else None


def figures_of(run: Run, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What a run's SAE is worth on some scaled rows."""
    fvu, firings = run.measured(x, y)
    low, step, counts = firings.densities()
    return {
        "rows": len(x),
        "fvu": fvu,
        "l0": firings.l0,
        "dead": firings.dead,
        "dense": firings.dense,
        "densities": {"low": low, "step": step, "counts": counts},
    }


def write_figures(
    folder: Path, run: Run, source: Source, held_out_facts: Mapping[str, Any], figures: Mapping[str, Any]
) -> None:
    """What the run ended with: for the report, which reads nothing else but the log."""
    data, held_out = dict(source.facts), dict(held_out_facts)
    held_out.pop("passed", None)  # its harvest says it
    facts = {
        "site": list(map(str, source.reads)),
        "site_out": list(map(str, source.writes)),
        "passed": data.pop("passed", {}),
        "data": data,
        "held_out_data": held_out,
        "config": run.config.to_dict(),
        "steps": run.done,
        "device": str(run.device),
        "world": run.group.size,
        "meets_target": run.config.meets_target,
        "versions": versions(),
    }
    with written_aside(folder / "figures.json") as path:
        path.write_text(json.dumps({**facts, **figures}, indent=1) + "\n", encoding="utf-8")
