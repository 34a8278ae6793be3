"""A table for spreadsheets."""

import csv
import io
import json
from pathlib import Path

import pytest

from atlases import HOSTILE_LABEL, planted_atlas
from gemscope.atlas.exchange.csv import guarded
from gemscope.atlas.exchange.verbs import export
from gemscope.atlas.reader import Atlas


def test_csv_has_a_row_a_feature_and_reads_back(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "all.csv", format="csv")
    raw = (tmp_path / "all.csv").read_bytes()
    assert b"\r\n" in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    csv.field_size_limit(1 << 24)
    rows = list(csv.DictReader(io.StringIO(raw.decode(), newline="")))
    assert [int(row["index"]) for row in rows] == list(range(len(atlas)))
    for row, page in zip(rows, atlas, strict=True):
        assert float(row["density"]) == page.density
        assert int(row["count"]) == page.count
        assert float(row["max"]) == page.max
        assert json.loads(row["promoted_tokens"]) == [one.token for one in page.promoted]
        assert json.loads(row["neighbours"]) == [one.feature for one in page.neighbours]
    assert rows[0]["label"] == HOSTILE_LABEL
    assert rows[6]["encoder_cosine"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =cmd|'/C calc'!A0", "\n=1"])
def test_a_spreadsheet_finds_no_formula(text: str, tmp_path: Path) -> None:
    assert guarded(text) == "'" + text
    assert guarded("1=2") == "1=2"
    with planted_atlas(tmp_path / "a.atlas", features=3) as made:
        made.explain(1, text)
        export(made, tmp_path / "out.csv", format="csv", features=[1])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["label"] == "'" + text
