"""An atlas in the bodies that Neuronpedia's upload of features takes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.exchange.folder import chosen
from gemscope.atlas.exchange.neuronpedia.writing import folded
from gemscope.atlas.exchange.pieces import piece_of
from gemscope.atlas.reader import Atlas
from gemscope.disk import folder_aside

UPLOAD = 128
"""Features in one upload."""


def export_upload(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """A folder of `upload-N.json`, each the body of one call of `/api/feature/upload-batch`. Raises as `export`."""
    manifest, wanted = atlas.manifest, chosen(features, len(atlas))
    with folder_aside(to) as aside:
        for number, start in enumerate(range(0, len(wanted), UPLOAD)):
            pages = (atlas[index] for index in wanted[start : start + UPLOAD])
            body = {
                "modelId": manifest.model_id,
                "source": manifest.source_id,
                "features": [_uploaded(page) for page in pages],
            }
            text = json.dumps(body, ensure_ascii=False, allow_nan=False)
            (aside / f"upload-{number}.json").write_text(text, encoding="utf-8")
    return to


def _uploaded(page: Dashboard) -> dict[str, Any]:
    unit = page.decoder_norm or 1.0
    activations = []
    for one in page.examples:
        values, low, high, share = folded(page, one)
        activations.append(
            {
                "tokens": [piece_of(token) for token in one.tokens][:1024],
                "values": values[:1024],
                "quantileMin": low,
                "quantileMax": high,
                "quantileFraction": share,
            }
        )
    return {
        "index": page.index,
        "density": page.density,
        "topLogits": [{"token": piece_of(one.token), "value": one.value / unit} for one in page.promoted[:20]],
        "bottomLogits": [{"token": piece_of(one.token), "value": one.value / unit} for one in page.suppressed[:20]],
        "explanations": [
            {"text": one.text[:512], "methodName": one.method, "modelName": one.model or None}
            for one in page.explanations
        ],
        "activations": activations,
    }
