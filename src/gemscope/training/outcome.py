"""What a run comes to: its SAE in the units of the site, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gemscope.activations.harvest import versions
from gemscope.disk import room, written_aside
from gemscope.errors import NotFinite
from gemscope.features.files.tensors import read_safetensors, stream_of, write_safetensors
from gemscope.features.sae import OF_FEATURES, SAE, SAEInfo
from gemscope.features.sliced import Sliced
from gemscope.training.deal import Dealt
from gemscope.training.fold import folded
from gemscope.training.run import Run
from gemscope.training.source import Source


class InParts(SAE):
    """An SAE whose features lie in the files of the ranks that trained them: to be written, not computed with."""

    parts_of: Mapping[str, Sliced]

    @property
    def tensors(self) -> dict[str, Sliced]:
        """Its weights, nowhere whole."""
        return {name: self.parts_of[name] for name in super().tensors}


def sae_of(run: Run, source: Source, name: str, l0: float, place: Path) -> SAE | None:
    """In the units of its site: unit decoder rows, scaling and centring folded in. Of several ranks each folds its own
    features and writes them to a file in `place`, and the first gets the whole of them, as they lie there: no rank ever
    holds more than its own. Raises NotFinite, StorageFull, FileError.
    """
    tensors, group = _own(run), run.group
    if group.size == 1:
        sae = _described(run, source, name, l0, kind=SAE, device="cpu")
        sae.load_state_dict({name: tensor for name, tensor in tensors.items() if name in sae.tensors})
        return sae
    if group.first:
        place.mkdir()
    group.barrier()
    files = [place / f"{rank}.safetensors" for rank in range(group.size)]
    with room(files[group.rank]):
        write_safetensors(files[group.rank], {name: stream_of(tensor) for name, tensor in tensors.items()})
    group.barrier()
    if not group.first:
        return None
    whole = _described(run, source, name, l0, kind=InParts, device="meta")
    parts = [read_safetensors(file) for file in files]
    whole.parts_of = {
        name: Dealt([part[name] for part in parts], OF_FEATURES[name]) if name in OF_FEATURES else Sliced.of(tensor)
        for name, tensor in parts[0].items()
    }
    return whole


S = TypeVar("S", bound=SAE)


def _described(run: Run, source: Source, name: str, l0: float, *, kind: type[S], device: str) -> S:
    """What it is, without its weights."""
    config, facts = run.config, dict(source.facts)
    topk = config.architecture == "topk"
    alone = len(source.reads) == 1
    return kind(
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
        device=device,
    )


def _own(run: Run) -> dict[str, Tensor]:
    """Its weights as an SAE's, of the features at hand."""
    config = run.config
    weights, free = run.ungated.to(torch.device("cpu")), config.architecture != "topk"
    tensors = folded(weights, run.x, run.y, pre_bias=config.pre_bias, free=free)
    if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise NotFinite(f"{lost[0]} of the trained SAE holds NaN or Inf: try a lower lr than {config.lr}")
    return tensors


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
