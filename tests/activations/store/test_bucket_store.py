"""A harvest in a bucket: the same bytes as on a disk, for any number of workers and after any death; its rows, read."""

from __future__ import annotations

import json
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gemscope.activations import ranged
from gemscope.activations import writer as writers
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.errors import Awaited, CorruptFile, InputError, Mismatch, NotFound, StoreUnreachable
from gemscope.text.corpus import Corpus
from gemscope.world import World
from harvested import SITES, TEXTS, contents
from processes import python
from s3_server import S3, Request

ADDRESS = "s3://bucket/rows"
PREFIX = "bucket/rows/"
OPTIONS: dict[str, Any] = {"length": 24, "batch": 2, "piece": 60}
"""Four pieces of the five documents."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_SHARD", 15_000)


@pytest.fixture(scope="module")
def here(model: LanguageModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """On a disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_SHARD", 15_000)
        return harvest(model, corpus, SITES, to=tmp_path_factory.mktemp("here") / "rows", **OPTIONS)


@pytest.fixture
def there(s3: S3, here: Store) -> Store:
    """The same in a bucket."""
    s3.objects |= {f"{PREFIX}{name}": data for name, data in contents(Path(here.folder)).items()}
    return Store(ADDRESS)


# --- written ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 192])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_bucket_gets_the_bytes_that_a_disk_gets_whoever_writes_them(
    workers: int, tokens: int | None, model: LanguageModel, corpus: Corpus, s3: S3, tmp_path: Path
) -> None:
    whole = contents(Path(harvest(model, corpus, SITES, to=tmp_path / "whole", tokens=tokens, **OPTIONS).folder))
    store = None
    rounds = range(workers) if workers == 1 else (*reversed(range(workers)), *range(workers))
    for rank in rounds:  # each comes twice: some find that others have put it together
        with suppress(Awaited):
            store = harvest(model, corpus, SITES, to=ADDRESS, tokens=tokens, world=World(rank, workers), **OPTIONS)
    assert store is not None
    assert (str(store.folder), store.manifest.read) == (ADDRESS, Store(tmp_path / "whole").manifest.read)
    assert s3.names(PREFIX) == whole
    notes = [one.key for one in s3.asked if one.method == "PUT" and "pieces" in one.key]
    assert len(notes) == len(set(notes)) > 1  # none is done twice
    assert all(
        one.headers.get("if-none-match") == "*" for one in s3.asked if one.method == "PUT" and "pieces" in one.key
    )


HARVEST = f"""
import os, signal, sys
from gemscope.activations import bucket, writer
from gemscope.activations.harvest import harvest
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.world import World
from gemscope.errors import Awaited
writer._SHARD = 15_000
dies, share = int(sys.argv[1]), World(int(sys.argv[2]), int(sys.argv[3]))
sent = 0
def counted(real):
    def send(*given, **more):
        global sent
        if sent == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*given, **more)
        sent += 1
        return found
    return send
for name in ("take", "put_once"):
    setattr(bucket.Bucket, name, counted(getattr(bucket.Bucket, name)))
try:
    harvest(tiny_model("llama"), Corpus.of({TEXTS!r}), {SITES!r}, to={ADDRESS!r}, **{OPTIONS!r}, world=share)
except Awaited:
    pass
"""


def test_killed_at_any_moment_it_is_finished_by_another_number_of_workers(here: Store, s3: S3) -> None:
    """The tiny model of a process of its own is the same to the bit."""
    whole = contents(Path(here.folder))
    dice, done = random.Random(4), set[str]()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def run(dies: int, rank: int, size: int) -> int:
        return python("-c", HARVEST, str(dies), str(rank), str(size), env=environment).code

    for size in (3, 2):
        for rank in range(size):
            assert run(dice.randrange(6), rank, size) in (-9, 0)
            notes = {one.key for one in s3.asked if one.method == "PUT" and "/pieces/" in one.key}
            assert done <= notes
            done = notes
    assert run(-1, 0, 1) == 0
    assert s3.names(PREFIX) == whole
    assert s3.count("PUT", "/pieces/") == len(
        {one.key for one in s3.asked if one.method == "PUT" and "/pieces/" in one.key}
    )


def test_two_at_once_write_the_same_and_the_second_note_is_turned_away(
    model: LanguageModel, corpus: Corpus, here: Store, s3: S3
) -> None:
    """A worker that was taken for dead comes to the same piece: it is told that it is there."""
    zombie: list[bool] = []

    def fault(request: Request) -> None:
        if request.method == "PUT" and request.key.endswith("pieces/00001.safetensors") and not zombie:
            zombie.append(True)
            s3.objects[request.key] = notes[request.key.rpartition("/")[2]]

    notes: dict[str, bytes] = {}
    s3.fault = lambda request: None
    with pytest.raises(Awaited):
        harvest(model, corpus, SITES, to=ADDRESS, world=World(1, 2), **OPTIONS)
    notes = {key.rpartition("/")[2]: data for key, data in s3.objects.items() if "/pieces/" in key}
    del s3.objects[f"{PREFIX}pieces/00001.safetensors"]
    s3.fault = fault
    harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    assert zombie
    assert s3.names(PREFIX) == contents(Path(here.folder))


@pytest.mark.parametrize("fault", [503, "cut", "lost"])
def test_a_harvest_outlives_a_server_that_fails_every_other_time(
    fault: int | str, model: LanguageModel, corpus: Corpus, here: Store, s3: S3
) -> None:
    dice = random.Random(7)
    s3.fault = lambda request: fault if dice.random() < 0.3 else None
    harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    assert s3.names(PREFIX) == contents(Path(here.folder))


def test_patience_that_ends_leaves_whole_pieces_and_names_the_object(
    model: LanguageModel, corpus: Corpus, here: Store, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMSCOPE_PATIENCE", "0.4")
    s3.fault = lambda request: 503 if "/00002-" in request.key and request.method == "PUT" else None
    with pytest.raises(
        StoreUnreachable, match=rf"^{ADDRESS}/.*/00002-00.safetensors: given up after .*HTTP 503 SlowDown"
    ):
        harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    assert {name for name in s3.names(PREFIX) if "pieces" in name} == {f"pieces/0000{n}.safetensors" for n in (0, 1)}
    with pytest.raises(NotFound, match=f"no harvest in {ADDRESS}: it has no manifest.json"):
        Store(ADDRESS)
    s3.fault = lambda request: None
    monkeypatch.delenv("GEMSCOPE_PATIENCE")
    harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    assert s3.names(PREFIX) == contents(Path(here.folder))


def test_what_is_there_already_is_refused_or_named(model: LanguageModel, corpus: Corpus, s3: S3) -> None:
    with pytest.raises(Awaited):
        harvest(model, corpus, SITES, to=ADDRESS, world=World(1, 2), **OPTIONS)
    with pytest.raises(
        Mismatch, match=rf"{ADDRESS}/pieces/00001.safetensors is a piece of a harvest .* another stored"
    ):
        harvest(model, corpus, SITES, to=ADDRESS, dtype="float32", **OPTIONS)
    s3.objects[f"{PREFIX}thesis.pdf"] = b"mine"
    with pytest.raises(InputError, match=rf"{ADDRESS}/thesis.pdf is of no unfinished harvest"):
        harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    assert s3.objects[f"{PREFIX}thesis.pdf"] == b"mine"


# --- read -------------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_disk_however_they_are_asked_for(there: Store, here: Store) -> None:
    generator = torch.Generator().manual_seed(0)
    assert (there.manifest, there.sites, there.folder) == (here.manifest, here.sites, ADDRESS)
    for site in SITES:
        far, near = there[site], here[site]
        assert (len(far), far.d, far.pieces) == (len(near), near.d, near.pieces)
        for _ in range(20):
            index = torch.randint(len(near), (17,), generator=generator)
            assert torch.equal(far.stored(index), near.stored(index))
        assert torch.equal(far[:], near[:])
        for name in ("tokens", "documents", "offsets"):
            assert torch.equal(getattr(far, name)(slice(3, 40)), getattr(near, name)(slice(3, 40)))
    there.verify()


def test_a_few_rows_are_read_by_their_ranges_and_no_shard_is_fetched(there: Store, here: Store, s3: S3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged, "_REQUEST", 0)  # shards here are smaller than what a request counts as
        rows = there["2.res"]
        before = len(s3.asked)
        assert torch.equal(rows.stored(slice(5, 9)), here["2.res"].stored(slice(5, 9)))
    [part] = [one for one in s3.asked[before:] if one.method == "GET"]
    width = rows.d * 2
    start, end = map(int, part.headers["range"].removeprefix("bytes=").split("-"))
    assert end + 1 - start == 4 * width


def test_a_shard_that_is_asked_for_again_and_again_is_fetched_once(there: Store, s3: S3) -> None:
    rows = there["2.res"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        rows.stored(torch.randint(len(rows), (16,), generator=generator))
    whole = [one.key for one in s3.asked if one.method == "GET" and "2.res" in one.key and "range" not in one.headers]
    assert len(whole) == len(set(whole)) == len(there.manifest.shards["2.res"])
    before = len(s3.asked)
    assert torch.equal(Store(ADDRESS)["2.res"][:], rows[:])
    assert not [
        one
        for one in s3.asked[before:]
        if "safetensors" in one.key and "range" not in one.headers and one.method == "GET"
    ]


def test_without_room_for_copies_rows_are_read_by_their_ranges(
    there: Store, here: Store, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMSCOPE_CACHE_SIZE", "10kB")
    assert torch.equal(there["2.res"][:], here["2.res"][:])
    assert torch.equal(there["0.mlp"].stored(torch.tensor([7, 3, 3])), here["0.mlp"].stored(torch.tensor([7, 3, 3])))
    assert {one.headers.get("range") is not None for one in s3.asked if one.method == "GET" and "0.mlp" in one.key} == {
        True
    }


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: b"\xff" * 200, None])
def test_a_shard_that_is_damaged_there_is_named_and_never_read(damage: Any, there: Store, s3: S3) -> None:
    """Of a whole one its length and its checksum are looked at."""
    key = f"{PREFIX}2.res/00001-00.safetensors"
    if damage is None:
        del s3.objects[key]
    else:
        s3.objects[key] = damage(s3.objects[key])
    with pytest.raises(CorruptFile, match=rf"^{ADDRESS}/2.res/00001-00.safetensors is damaged: ") as raised:
        there["2.res"][:]
    assert "\n" not in str(raised.value)
    with pytest.raises(
        CorruptFile, match=r"1 of \d+ shards in s3://bucket/rows are damaged: 2.res/00001-00.safetensors"
    ):
        there.verify()
    with pytest.warns(UserWarning, match="00001-00.safetensors is damaged: its rows are left out"):
        rows = Store(ADDRESS, skip_corrupt=True)["2.res"]
    assert 0 < len(rows) < there.manifest.sites["2.res"]


def test_a_body_that_is_cut_is_never_taken_for_a_shard(there: Store, here: Store, s3: S3) -> None:
    s3.fault = lambda request: "cut" if request.number % 2 and request.method == "GET" else None
    for _ in range(3):
        assert torch.equal(there["2.res"][:], here["2.res"][:])
    there.verify()


def test_no_file_of_a_harvest_names_a_key(model: LanguageModel, corpus: Corpus, s3: S3) -> None:
    with pytest.raises(Awaited):
        harvest(model, corpus, SITES, to=ADDRESS, world=World(1, 2), **OPTIONS)
    harvest(model, corpus, SITES, to=ADDRESS, **OPTIONS)
    for name, data in s3.names(PREFIX).items():
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data, name
        assert os.environ["AWS_ACCESS_KEY_ID"].encode() not in data, name
    assert "127.0.0.1" not in json.dumps(json.loads(s3.names(PREFIX)["manifest.json"]))
