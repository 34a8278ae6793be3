"""What a source on Neuronpedia is of: model, site and size, as its rows and the catalogue say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.effects import measured_read
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.exchange.numbers import as_whole
from gemscope.atlas.exchange.provenance import OURS, from_windows, in_catalog
from gemscope.atlas.files.manifest import Manifest
from gemscope.checked import EXACT

_UNKNOWN_TOKENS = 100_000
"""Tokens that a density is a share of where a source does not say: it is told with five digits."""


@dataclass(frozen=True)
class Source:
    """What is known of one."""

    names: dict[str, Any]
    """Fields of the manifest."""
    size: object
    """Features, as told."""
    tokens: int
    told: bool
    """Whether the number of tokens is."""
    text: str
    logits: str


def source_of(place: Path, source: dict[str, Any], model_id: object, model: str | None) -> Source:
    """Of the row of a source, and the model that others say it is of; `model` is what the user says."""
    model_id = str(source.get("modelId") or model_id or place.parent.name)
    source_id = str(source.get("id") or place.name)
    config = source.get("saelensConfig")
    config = config if isinstance(config, dict) else {}
    ours = config.get(OURS)
    ours = ours if isinstance(ours, dict) else {}
    entry = in_catalog("neuronpedia_id", f"{model_id}/{source_id}")
    tokens = ours.get("tokens") or _product(source.get("num_prompts"), source.get("num_tokens_in_prompt"))
    known = tokens if type(tokens) is int and 0 < tokens < EXACT else None
    names = {
        "model": model or str(ours.get("model") or (entry.model if entry else model_id)),
        "model_id": slugged(model_id),
        "source_id": slugged(source_id),
        "neuronpedia_id": f"{model_id}/{source_id}",
        "revision": _text(ours.get("revision")),
        "sae": str(ours.get("sae") or (entry.address if entry else _hub(source) or f"{model_id}/{source_id}")),
        "sae_digest": str(ours.get("sae_digest") or ""),
        "site": str(ours.get("site") or (entry.site if entry else _site(source_id))),
        "site_out": str(ours.get("site_out") or (entry.site_out if entry else _site(source_id))),
        "effect": measured_read(ours.get("effect"), str(place)),
        "gate": str(ours.get("gate") or ("jumprelu" if entry and entry.generation else "unknown")),
    }
    return Source(
        names,
        size=next((one for one in (ours.get("d_sae"), config.get("d_sae"), entry and entry.width) if one), None),
        tokens=known or _UNKNOWN_TOKENS,
        told=known is not None,
        text=str(source.get("dataset") or "a text that the files do not name"),
        logits=_text(ours.get("logits"))
        or "decoder times unembedding, as Neuronpedia has it: which norm is folded is not said",
    )


def manifest_of(source: Source, intake: Intake, size: int, missing: list[int], has_logits: bool) -> Manifest:
    """Of the atlas that it becomes."""
    taken = intake.taken
    counts = f"{taken.exact} exact, out of histograms; {taken.rounded} are shares of the tokens, rounded to 0.001 %"
    if not source.told:
        counts = f"the number of tokens is not told: shares of {_UNKNOWN_TOKENS:,} stand for counts"
    return from_windows(
        intake,
        missing,
        format="neuronpedia",
        metadata={"units": "activations are those of a decoder of norm 1", "counts": counts},
        text=source.text,
        counted=source.tokens,
        logits=source.logits if has_logits else None,
        d_sae=size,
        **source.names,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _product(prompts: object, length: object) -> int | None:
    one, other = as_whole(prompts), as_whole(length)
    return None if one is None or other is None else one * other


def _hub(source: dict[str, Any]) -> str | None:
    repo, folder = source.get("hfRepoId"), source.get("hfFolderId")
    return f"{repo}/{folder}" if repo and folder else repo


def _site(source_id: str) -> str:
    """As far as a name tells: `20-gemmascope-res-16k` reads the residual stream behind block 20."""
    layer, _, rest = source_id.partition("-")
    words = set(re.split(r"[-_]", rest))
    kind = next((kind for kind in ("res", "mlp", "att", "transcoder") if words & {kind, f"{kind}s"}), None)
    return f"{layer}.{kind}" if kind and layer.isdecimal() else "unknown"
