"""A hundred atlases behind one server: which are open, which are not, and what is found below a folder."""

import gc
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from atlases import planted_atlas
from gemscope.app.live import Live, Loaded
from gemscope.app.opened import FEW, Room
from gemscope.app.shelf import folders, shelf
from gemscope.atlas.reader import Atlas
from gemscope.errors import CorruptFile, NotFound
from html_tree import parse
from served import MODEL, SAE, here, reader

MANY = 100


def at(root: Path, layer: int, kind: str = "res", width: str = "2k", l0: int = 20) -> Path:
    """Where a scope keeps the atlas of an SAE."""
    return root / kind / f"layer_{layer}" / f"width_{width}" / f"average_l0_{l0}" / "atlas"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "atlas"
    planted_atlas(folder, features=12, rows=8).close()
    return folder


def copied(one: Path, to: Path, **manifest: Any) -> Path:
    """A copy that says other things of itself."""
    shutil.copytree(one, to)
    path = to / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    return to


@pytest.fixture(scope="module")
def many(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scope of a hundred sites."""
    root = tmp_path_factory.mktemp("many")
    for layer in range(MANY // 2):
        for kind in ("res", "mlp"):
            site = f"{layer}.{kind}"
            copied(one, at(root, layer, kind), source_id=f"{layer}-{kind}-2k", site=site, site_out=site)
    return root


def open_files(root: Path) -> int:
    """How many files below a folder this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += str(link.readlink()).startswith(str(root))
        except OSError:
            continue
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted by /proc")


# --- what is found --------------------------------------------------------------------------------------------------


def test_all_atlases_below_a_folder_are_found_by_layer(one: Path, tmp_path: Path) -> None:
    places = [at(tmp_path, layer, kind) for kind in ("mlp", "res") for layer in (2, 10)]
    for place in reversed(places):
        copied(one, place)
    copied(one, tmp_path / ".hidden" / "atlas")
    copied(one, places[0] / "within")  # what lies in an atlas is its own
    (tmp_path / "store").mkdir()
    (tmp_path / "res" / "rows").mkdir()
    (tmp_path / "res" / "rows" / "manifest.json").write_text("{}")  # of something else
    assert folders(tmp_path) == places
    assert folders(places[0]) == [places[0]]


def test_a_link_to_a_folder_around_it_does_not_go_round_for_ever(one: Path, tmp_path: Path) -> None:
    copied(one, tmp_path / "deep" / "down" / "atlas")
    (tmp_path / "deep" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert tmp_path / "deep" / "down" / "atlas" in folders(tmp_path)
    assert len(folders(tmp_path)) == 1


def test_a_folder_of_too_many_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemscope.app.shelf._FOLDERS", 3)
    for name in "abcd":
        (tmp_path / name).mkdir()
    with pytest.raises(NotFound, match="more than 3 folders"):
        folders(tmp_path)


def test_saes_of_one_site_and_width_are_told_apart_by_their_l0(one: Path, tmp_path: Path) -> None:
    for l0 in (20, 40, 80):
        copied(one, at(tmp_path, 3, l0=l0), source_id="3-res-2k", site="3.res", site_out="3.res")
    assert [source.address[1] for source in shelf(folders(tmp_path))] == [
        "3-res-2k",
        "3-res-2k__l0-40",
        "3-res-2k__l0-80",
    ]


# --- which are open ---------------------------------------------------------------------------------------------------


@needs_proc
def test_of_a_hundred_atlases_one_is_open_at_first_and_a_few_later(many: Path) -> None:
    served = shelf(folders(many), room=Room(most=5))
    assert len(served) == MANY
    assert sum(one.at_hand() is not None for one in served) == 1
    for source in served:
        assert source.atlas[3].index == 3
        assert source.living > 0
    gc.collect()
    assert sum(one.at_hand() is not None for one in served) == 5
    assert 5 <= open_files(many) <= 15
    served.close()
    gc.collect()
    assert open_files(many) == 0


def test_few_atlases_are_all_opened_at_once_and_what_is_wrong_with_them_is_said(one: Path, tmp_path: Path) -> None:
    places = [copied(one, tmp_path / f"{number}") for number in range(FEW)]
    served = shelf(places)
    assert all(source.at_hand() is not None for source in served)
    served.close()
    (places[-1] / "atlas.sqlite").write_bytes(b"nothing")
    with pytest.raises(CorruptFile):
        shelf(places)


def test_as_many_stay_open_as_their_features_allow(one: Path, tmp_path: Path) -> None:
    served = shelf([copied(one, tmp_path / f"{number}") for number in range(4)], room=Room(features=30))
    assert [source.at_hand() is not None for source in served] == [False, False, True, True]
    served.close()


def test_who_reads_an_atlas_that_is_let_go_of_reads_on(one: Path, tmp_path: Path) -> None:
    first, second = (copied(one, tmp_path / name) for name in "ab")
    room = Room(most=1)
    atlas = room.open(first).atlas
    pool = atlas.pool
    assert room.open(second).atlas.folder == second
    assert room.at_hand(first) is None
    assert atlas[2].index == 2
    del atlas
    assert pool.firings(0) is not None  # and so does who has a part of it
    room.close()


def test_many_threads_that_ask_for_one_atlas_open_it_once(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def noted(folder: Path) -> Atlas:
        opened.append(folder)
        return Atlas(folder)

    monkeypatch.setattr("gemscope.app.opened.Atlas", noted)
    room = Room()
    threads = [threading.Thread(target=room.open, args=(one,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [one]
    room.close()


def test_atlases_of_one_model_share_their_vocabulary(one: Path, tmp_path: Path) -> None:
    with Atlas(one) as first, Atlas(copied(one, tmp_path / "copy")) as second:
        assert first._text.vocabulary is second._text.vocabulary


# --- texts that are read ----------------------------------------------------------------------------------------------


def test_saes_are_let_go_of_and_loaded_again_when_a_text_is_read(many: Path) -> None:
    loaded: list[str] = []

    def find(manifest: Any) -> tuple[Any, Any]:
        loaded.append(manifest.source_id)
        return here(manifest)

    with reader(many, models=find) as client:
        assert loaded == ["0-mlp-2k"]  # of many the first alone is there from the beginning
        states = {one["source"]: one["live"] for one in client.get("/health").json()["sources"]}
        assert states["0-res-2k"] == "resting"


def test_the_weights_that_stay_loaded_have_a_bound() -> None:
    room = Loaded(0)
    lives = [Live(loaded=room) for _ in range(3)]
    for live in lives:
        live._pair, live.state = (MODEL, SAE), "ready"
    room.most = 2 * lives[0].size
    assert lives[0].size >= SAE.W_enc.nbytes + SAE.W_dec.nbytes
    for live in (*lives[:2], lives[0], lives[2]):
        room.needed(live)
    assert [live.state for live in lives] == ["ready", "resting", "ready"]
    assert lives[1].on
    assert lives[1].sae is None


def test_an_sae_beside_its_atlas_goes_with_it(one: Path, tmp_path: Path) -> None:
    place = copied(one, at(tmp_path, 1))
    assert next(iter(shelf([place]))).named.sae == "planted"
    (place.parent / "cfg.json").write_text("{}")
    assert next(iter(shelf([place]))).named.sae == str(place.parent)


# --- pages ------------------------------------------------------------------------------------------------------------


def test_every_page_of_a_hundred_atlases_is_there(many: Path) -> None:
    with reader(many) as client:
        found = client.get("/").text
        assert client.get("/.json").json()["sources"][99]["id"] == "49-res-2k"
        assert parse(found).one("h1").text
        for name in ("0-mlp-2k", "31-res-2k", "49-res-2k"):
            assert client.get(f"/tiny-model/{name}/3").status_code == 200
            assert client.get(f"/tiny-model/{name}").status_code == 200
            assert client.get(f"/tiny-model/{name}/map/points").status_code == 404
            assert client.get(f"/api/feature/tiny-model/{name}/3").json()["index"] == "3"
