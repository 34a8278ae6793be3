"""A table for programs."""

import sys
from pathlib import Path
from typing import Any

import pytest

from gemscope.atlas.exchange.verbs import export
from gemscope.atlas.reader import Atlas
from gemscope.errors import MissingDependency


def test_parquet_holds_everything_with_nested_lists(atlas: Atlas, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    export(atlas, tmp_path / "all.parquet", format="parquet")
    rows = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert len(rows) == len(atlas)
    for row, page in zip(rows, atlas, strict=True):
        assert row["density"] == page.density
        assert row["label"] == page.label
        assert [one["token"] for one in row["promoted"]] == [one.token for one in page.promoted]
        assert [one["interval"] for one in row["examples"]] == [one.interval for one in page.examples]
        assert [one["ids"] for one in row["examples"]] == [one.ids for one in page.examples]
        for mine, one in zip(row["examples"], page.examples, strict=True):
            assert mine["values"] == pytest.approx(one.values)
        assert (row["histogram"] is None) == (page.histogram is None)


def test_without_pyarrow_one_line_says_how_to_get_it(atlas: Atlas, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"gemscope\[parquet\]"):
        export(atlas, tmp_path / "all.parquet", format="parquet")
    assert not list(tmp_path.iterdir())
