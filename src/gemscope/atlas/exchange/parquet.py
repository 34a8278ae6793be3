"""The whole dictionary as a table for programs: everything, a row a feature, lists nested."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.exchange.folder import chosen
from gemscope.atlas.reader import Atlas
from gemscope.disk import written_aside
from gemscope.errors import MissingDependency

_ROWS = 128
"""Features in a group of rows of a Parquet file."""


def export(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """Everything that an atlas holds of each feature, lists nested. Raises MissingDependency without pyarrow, and what
    `csv.export` raises."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("Parquet needs pyarrow: pip install 'gemscope[parquet]', or export csv") from error
    wanted = chosen(features, len(atlas))
    schema = _schema(pa).with_metadata(
        {"gemscope": json.dumps({"model": atlas.manifest.model, "sae": atlas.manifest.sae})}
    )
    with written_aside(to) as aside, parquet.ParquetWriter(aside, schema, compression="zstd") as file:
        for start in range(0, len(wanted), _ROWS):
            rows = [_row(atlas[index]) for index in wanted[start : start + _ROWS]]
            file.write_table(pa.Table.from_pylist(rows, schema=schema))
    return to


def _schema(pa: Any) -> Any:
    def listed(**fields: Any) -> Any:
        return pa.list_(pa.struct(list(fields.items())))

    number, whole, text = pa.float64(), pa.int64(), pa.string()
    histogram = pa.struct([("low", number), ("step", number), ("counts", pa.list_(whole))])
    return pa.schema(
        [
            ("index", pa.int32()),
            ("model", text),
            ("source", text),
            ("label", text),
            ("density", number),
            ("count", whole),
            ("tokens", whole),
            ("max", number),
            ("mean", number),
            ("encoder_cosine", number),
            ("decoder_norm", number),
            ("histogram", histogram),
            ("intervals", listed(low=number, high=number, count=whole, share=number)),
            ("promoted", listed(id=pa.int32(), token=text, value=number)),
            ("suppressed", listed(id=pa.int32(), token=text, value=number)),
            ("logit_histogram", histogram),
            (
                "effect",
                pa.struct(
                    {
                        "promoted": listed(id=pa.int32(), token=text, value=number),
                        "suppressed": listed(id=pa.int32(), token=text, value=number),
                        **dict.fromkeys(("spread", "agreement", "this"), number),
                        "words": text,
                    }
                ),
            ),
            ("neighbours", listed(feature=pa.int32(), cosine=number)),
            ("coactive", listed(feature=pa.int32(), jaccard=number, share=number)),
            (
                "explanations",
                listed(
                    text=text,
                    method=text,
                    author=text,
                    score=number,
                    control=number,
                    confidence=number,
                    rule=text,
                    model=text,
                    made=text,
                ),
            ),
            (
                "examples",
                listed(
                    interval=pa.int8(),
                    document=whole,
                    position=whole,
                    peak=pa.int32(),
                    value=number,
                    ids=pa.list_(pa.int32()),
                    tokens=pa.list_(text),
                    values=pa.list_(pa.float32()),
                ),
            ),
        ]
    )


def _row(page: Dashboard) -> dict[str, Any]:
    """By the schema's names, which are the page's own; it passes over what lists say beyond it."""
    row: dict[str, Any] = vars(page) | {"label": page.label, "density": page.density}
    for name in ("histogram", "logit_histogram"):
        row[name] = row[name] and vars(row[name])
    for name in ("intervals", "promoted", "suppressed", "neighbours", "coactive", "explanations"):
        row[name] = list(map(vars, row[name]))
    if page.writes is not None:
        row["effect"] = vars(page.writes) | {
            name: list(map(vars, getattr(page.writes, name))) for name in ("promoted", "suppressed")
        }
    return row | {"examples": [vars(one) | {"value": one.value} for one in page.examples]}
