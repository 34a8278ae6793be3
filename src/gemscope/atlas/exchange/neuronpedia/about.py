"""The rows that features belong to on Neuronpedia: model, release, set of sources, source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.provenance import OURS, told
from gemscope.atlas.files.manifest import Manifest

EPOCH = "1970-01-01T00:00:00"
"""The same atlas gives the same bytes: there are no clocks in them."""


def write_about(
    config: Path, place: Path, manifest: Manifest, creator: str, *, methods: list[str], models: list[str]
) -> None:
    """The rows that features belong to."""
    config.mkdir()
    _write(
        config / "explanation_type.jsonl",
        *({"name": name, "displayName": name, "description": name} for name in methods),
    )
    _write(
        config / "explanation_model_type.jsonl",
        *({"name": name, "displayName": name, "description": name} for name in models),
    )
    model, source = manifest.model_id, manifest.source_id
    who = {"creatorId": creator, "createdAt": EPOCH}
    _write(
        place / "model.jsonl",
        {
            "id": model,
            "instruct": model.endswith(("-it", "-instruct")),
            "displayNameShort": model,
            "displayName": manifest.model,
            **who,
            "updatedAt": EPOCH,
        },
    )
    _write(
        place / "release.jsonl",
        {
            "name": set_name(source),
            "description": manifest.sae,
            "descriptionShort": manifest.sae,
            "urls": [],
            "creatorNameShort": creator,
            "creatorName": creator,
            **who,
        },
    )
    _write(
        place / "sourceset.jsonl",
        {
            "modelId": model,
            "name": set_name(source),
            **who,
            "creatorName": creator,
            "releaseName": set_name(source),
            "description": manifest.sae,
            "visibility": "PUBLIC",
        },
    )
    _write(
        place / "source.jsonl",
        {
            "id": source,
            "modelId": model,
            "setName": set_name(source),
            "visibility": "PUBLIC",
            "dataset": ", ".join(part.name for part in manifest.parts),
            "num_prompts": manifest.rows,
            "num_tokens_in_prompt": manifest.length,
            "saelensConfig": {OURS: told(manifest)},
            "saelensRelease": None,
            "saelensSaeId": None,
            "hfRepoId": None,
            "hfFolderId": None,
            "creatorId": creator,
            "createdAt": EPOCH,
        },
    )


def set_name(source: str) -> str:
    """`20-gemmascope-res-16k` belongs to the set `gemmascope-res-16k`, and so does `20-gemmascope-res-16k__l0-50`."""
    layer, dash, rest = source.partition("-")
    return (rest if dash and layer.isdecimal() else source).partition("__")[0]


def _write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
