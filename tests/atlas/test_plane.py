"""The map in an atlas: kept, read, added to one that has none, and found out where it is damaged."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import gemscope as gs
from atlases import change_sql, planted_atlas, powerless
from gemscope.atlas.describe.mapping import add_map
from gemscope.atlas.files.manifest import Mapped
from gemscope.atlas.files.packing import pack
from gemscope.atlas.verify import verify
from gemscope.cli.main import main
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch
from gemscope.features.map import plane
from served import SAE, planted

SAID = Mapped(method="made up", kept=0.5)
BUNDLED = Path(gs.__file__).parent / "data" / "atlas"


def places(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (count, 2)).astype(np.uint16)


def test_a_map_is_kept_and_read_by_others(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "atlas") as atlas:
        assert atlas.places is None
        atlas.put_places(places(), SAID)
        assert (atlas.places == places()).all()
        atlas.put_places(places(seed=1), SAID)
        assert (atlas.places == places(seed=1)).all()
    with gs.Atlas(tmp_path / "atlas") as atlas:
        assert (atlas.places == places(seed=1)).all()
        assert atlas.manifest.map == SAID
        with pytest.raises(ValueError, match="read-only"):
            atlas.places[0] = 0
        with pytest.raises(InputError, match=r"\[40, 2\]"):
            atlas.put_places(places(39), SAID)
    assert verify(tmp_path / "atlas") == []


def test_an_atlas_of_an_older_format_has_no_map_until_one_is_added(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "atlas"))
    with closing(sqlite3.connect(folder / "atlas.sqlite")) as db:
        older = db.execute("PRAGMA user_version").fetchone()[0] < 4
    with gs.Atlas(folder) as atlas:
        if older:
            assert atlas.places is None
            assert atlas.manifest.no_map is None
        atlas.put_places(places(len(atlas)), SAID)
    with gs.Atlas(folder) as atlas:
        assert atlas.manifest.format == 4
        assert (atlas.places == places(len(atlas))).all()
        assert atlas[3777].label
    assert verify(folder) == []


@pytest.mark.parametrize("harm", ["length", "kind", "bits", "row", "manifest"])
def test_a_damaged_map_is_found_out(harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    with planted_atlas(folder) as atlas:
        atlas.put_places(places(), SAID)
    if harm == "manifest":
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"map": None}))
        assert verify(folder) == ["the manifest says that there is no map, the tables say otherwise"]
        return
    wrong = {
        "length": pack((places(39)[:, 0], places(39)[:, 1])),
        "kind": pack((np.full(40, -1), np.full(40, 70_000))),
        "bits": b"\x00" + pack((places()[:, 0], places()[:, 1])),
    }
    if harm == "row":
        change_sql(folder, "UPDATE plane SET id = 7")
        with pytest.raises(CorruptFile, match="table plane"):
            gs.Atlas(folder)
        return
    change_sql(folder, f"UPDATE plane SET packed = x'{wrong[harm].hex()}'")
    assert any(problem.startswith("table plane") for problem in verify(folder))
    with gs.Atlas(folder) as atlas, pytest.raises(CorruptFile) as raised:
        _ = atlas.places
    assert "\n" not in str(raised.value)


def test_a_map_is_added_by_the_sae_that_the_atlas_was_made_with(tmp_path: Path) -> None:
    folder = planted(tmp_path / "atlas")
    with gs.Atlas(folder) as atlas:
        made = add_map(atlas, SAE)
        assert (atlas.places == plane(SAE.W_dec).places).all()
        assert atlas.manifest.map == Mapped(method=made.method, kept=round(made.kept, 4))
    with planted_atlas(tmp_path / "other", features=SAE.d_sae) as other, pytest.raises(Mismatch, match="another SAE"):
        add_map(other, SAE)


def test_where_nothing_can_be_written_no_map_is_added(tmp_path: Path) -> None:
    folder = planted(tmp_path / "atlas")
    with gs.Atlas(folder) as atlas, powerless(folder), pytest.raises(AccessError):
        add_map(atlas, SAE)


def test_the_shell_adds_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted(tmp_path / "atlas")
    gs.save_sae(SAE, tmp_path / "sae")
    path = folder / "manifest.json"
    digest = gs.load_sae(tmp_path / "sae", site=SAE.site).digest
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sae_digest": digest}))
    assert main(["atlas", "map", str(folder), "--sae", str(tmp_path / "sae"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    with gs.Atlas(folder) as atlas:
        assert atlas.places is not None
        assert said == {"folder": str(folder), "method": atlas.manifest.map.method, "kept": said["kept"]}
    assert main(["atlas", "map", str(folder), "--sae", str(tmp_path / "sae")]) == 0
    assert "are among its fifty nearest" in capsys.readouterr().out
