"""What features promote by the measured effect goes out beside what other tools know of, and comes back."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from atlases import EFFECT, with_effect
from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile


@pytest.fixture(scope="module")
def written(planted: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """The planted atlas, with an effect."""
    return with_effect(planted, tmp_path_factory.mktemp("written") / "atlas")


@pytest.mark.parametrize("format", ["neuronpedia", "anthropic"])
def test_a_round_trip_keeps_it(written: Atlas, tmp_path: Path, format: str) -> None:
    out = export(written, tmp_path / "out", format=format)
    back = import_atlas(format, out, to=tmp_path / "back")
    assert back.manifest.effect == EFFECT
    assert verify(back.folder) == []
    for index in range(len(written)):
        there, here = written[index].writes, back[index].writes
        if index == 4:
            assert there is here is None
            continue
        assert there is not None
        assert here is not None
        unit = (written[index].decoder_norm or 1.0) if format == "neuronpedia" else 1.0
        assert [one.token for one in here.promoted] == [one.token for one in there.promoted]
        assert [one.value * unit for one in here.promoted] == pytest.approx(
            [one.value for one in there.promoted], rel=2e-3
        )
        assert [one.value * unit for one in here.suppressed] == pytest.approx([-1.0], rel=2e-3)
        assert here.spread * unit == pytest.approx(there.spread)
        assert (here.agreement, here.this, here.words) == (there.agreement, there.this, there.words)
    assert {one.summary.feature for one in back.promoting(" sun")} == {
        one.summary.feature for one in written.promoting(" sun")
    }


def test_the_fields_of_neuronpedia_are_those_of_the_direct_path(written: Atlas, planted: Atlas, tmp_path: Path) -> None:
    rows: list[list[dict[str, object]]] = []
    for number, atlas in enumerate((written, planted)):
        place = export(atlas, tmp_path / str(number), format="neuronpedia")
        (file,) = place.rglob("features/batch-0.jsonl.gz")
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows.append(list(map(json.loads, lines)))
    for ours, plain in zip(*rows, strict=True):
        beside = ours.pop("gemscope", None)
        assert ours == plain
        assert (beside is None) == (ours["index"] == "4")


def test_tables_have_it_too(written: Atlas, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(export(written, tmp_path / "x.parquet", format="parquet")).to_pylist()
    assert rows[4]["effect"] is None
    assert rows[3]["effect"]["words"] == "sun, <b>river</b>"
    assert [one["id"] for one in rows[3]["effect"]["promoted"]] == [23, 24]
    with export(written, tmp_path / "x.csv", format="csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[3]["effect_promotes"] == "sun, <b>river</b>"
    assert json.loads(table[4]["effect_tokens"]) == []


def test_a_damaged_one_is_one_line(written: Atlas, tmp_path: Path) -> None:
    out = export(written, tmp_path / "out", format="anthropic", features=[3])
    whole = json.loads((out / "3.json").read_text())
    for wrong in ({"promoted": 3}, {"spread": 0.0}, {"words": 5}):
        changed = whole | {"gemscope": whole["gemscope"] | {"effect": whole["gemscope"]["effect"] | wrong}}
        (out / "3.json").write_text(json.dumps(changed))
        with pytest.raises(CorruptFile, match="feature 3"):
            import_atlas("anthropic", out, to=tmp_path / "back")
        assert not (tmp_path / "back").exists()
