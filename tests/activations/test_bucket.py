"""Objects in a bucket, and what befalls them on the way: refusals, bodies that break off, answers that never come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gemscope.activations.bucket import Bucket
from gemscope.activations.place import Here, place_of
from gemscope.errors import (
    AccessError,
    CorruptFile,
    GemscopeError,
    InputError,
    MissingDependency,
    NotFound,
    StorageFull,
    StoreUnreachable,
)
from s3_server import KEY, S3, SECRET, Request

ADDRESS = "s3://bucket/some/folder"


@pytest.fixture
def bucket(s3: S3) -> Bucket:
    return Bucket.at(ADDRESS)


def put(bucket: Bucket, name: str, data: bytes) -> bool:
    return bucket.put_once(name, lambda path: path.write_bytes(data) and None)


def taken(bucket: Bucket, name: str, data: bytes) -> None:
    with bucket.making(name) as folder:
        (folder / "file").write_bytes(data)
        bucket.take(folder / "file", name)


def read(bucket: Bucket, name: str) -> bytes:
    with bucket.reading(name) as path:
        return path.read_bytes()


def first(what: int | str, method: str = "GET", times: int = 1) -> Callable[[Request], int | str | None]:
    """Befalls the first requests of a kind for each object."""
    return lambda request: what if request.method == method and request.number <= times else None


class Clock:
    """Time that passes when somebody waits for it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def hurried(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gemscope.activations.bucket.time", clock)
    return clock


# --- as on a disk -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "disk":
        (tmp_path / "here").mkdir()
        return Here(tmp_path / "here")
    request.getfixturevalue("s3")
    return Bucket.at(ADDRESS)


def test_a_folder_is_the_same_on_a_disk_and_in_a_bucket(place: Any) -> None:
    assert place.names() == []
    assert not place.has("a")
    assert place.put_once("deep/b", lambda path: path.write_bytes(b"first") and None)
    assert not place.put_once("deep/b", lambda path: path.write_bytes(b"second") and None)
    with place.making("a") as folder:
        assert list(folder.iterdir()) == []
        (folder / "x").write_bytes(b"0" * 100_000)
        place.take(folder / "x", "a")
        assert not place.has("x")
    assert not folder.exists()
    assert sorted(place.names()) == ["a", "deep/b"]
    assert place.names("deep") == ["deep/b"]
    assert place.has("a")
    assert not place.has("deep")
    with place.reading("deep/b") as path:
        assert path.read_bytes() == b"first"
    assert place.kept("a").read_bytes() == b"0" * 100_000
    assert place.digest("a") == Here(place.kept("a").parent).digest("a")
    assert list(place.each(lambda n: n * n, range(100))) == [n * n for n in range(100)]
    place.remove(["a", "nothing"])
    assert place.names() == ["deep/b"]
    place.discard("deep")
    assert place.names() == []


def test_a_list_comes_in_pages_and_holds_no_neighbours(bucket: Bucket, s3: S3) -> None:
    s3.page = 3
    for number in range(10):
        put(bucket, f"pieces/{number}", b"x")
    s3.objects["bucket/some/folder-beside/y"] = s3.objects["bucket/some/z"] = b""
    assert sorted(bucket.names()) == [f"pieces/{number}" for number in range(10)]


def test_large_files_go_in_parts(bucket: Bucket, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemscope.activations.bucket._CHUNK", 100_000)
    data = bytes(range(256)) * 1_000
    taken(bucket, "large", data)
    assert s3.objects["bucket/some/folder/large"] == data
    assert s3.count("POST") == 2
    assert read(bucket, "large") == data


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "lost"])
def test_what_breaks_is_tried_again(fault: int | str, bucket: Bucket, s3: S3) -> None:
    s3.objects["bucket/some/folder/a"] = data = bytes(range(256)) * 2_000
    s3.fault = first(fault, times=2)
    assert read(bucket, "a") == data
    s3.fault = first(fault, "PUT", times=2)
    taken(bucket, "b", data)
    assert s3.objects["bucket/some/folder/b"] == data


def test_a_body_that_breaks_off_goes_on_where_it_broke(bucket: Bucket, s3: S3) -> None:
    s3.objects["bucket/some/folder/a"] = data = bytes(range(256)) * 6_000
    s3.fault = first("cut", times=3)
    assert read(bucket, "a") == data
    starts = [one.headers.get("range") for one in s3.asked if one.method == "GET"]
    assert starts[0] is None
    assert all(start is not None for start in starts[1:])
    assert [len(starts), *(one.headers.get("if-match") is not None for one in s3.asked[1:])] == [4, True, True, True]


def test_what_is_put_there_while_it_is_read_is_read_anew_and_never_mixed(bucket: Bucket, s3: S3) -> None:
    s3.objects["bucket/some/folder/a"] = b"0" * 1_000_000
    new = b"1" * 900_000

    def fault(request: Request) -> str | None:
        if request.number == 1:
            return "cut"
        s3.objects["bucket/some/folder/a"] = new
        return None

    s3.fault = fault
    assert read(bucket, "a") == new


def test_an_answer_that_is_lost_is_no_second_writer(bucket: Bucket, s3: S3) -> None:
    s3.fault = first("lost", "PUT")
    assert not put(bucket, "a", b"mine")  # somebody was first: ourselves
    assert s3.objects["bucket/some/folder/a"] == b"mine"


def test_two_who_are_both_told_that_the_other_was_first_try_again(bucket: Bucket, s3: S3) -> None:
    s3.fault = first(412, "PUT")
    assert put(bucket, "a", b"mine")
    assert s3.objects["bucket/some/folder/a"] == b"mine"


@pytest.mark.parametrize(
    ("fault", "reason"), [(503, "HTTP 503 SlowDown"), ("cut", "its body broke off"), ("held", "no answer in time")]
)
def test_patience_ends_in_one_line_that_names_the_object_and_the_last_reason(
    fault: int | str, reason: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "held":
        monkeypatch.setenv("GEMSCOPE_PATIENCE", "0.3")
    else:
        hurried(monkeypatch)
    bucket, patience = Bucket.at(ADDRESS), "0.3" if fault == "held" else "300"
    s3.objects["bucket/some/folder/a"] = s3.objects["bucket/some/folder/known"] = b"12345"
    assert bucket.has("known")
    s3.fault = lambda request: fault if request.method == "GET" else None
    with pytest.raises(StoreUnreachable) as raised:
        read(bucket, "a")
    assert str(raised.value).startswith(f"{ADDRESS}/a: given up after {patience} s, at last {reason}; ")
    assert "\n" not in str(raised.value)


def test_patience_begins_anew_with_every_byte(bucket: Bucket, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = hurried(monkeypatch)
    done = 0

    def slowly() -> str:
        nonlocal done
        done += 1
        clock.now += 200
        if done < 20:
            raise EOFError
        return "all of it"

    assert bucket._tried("a", slowly, lambda: done) == "all of it"
    assert clock.now > 4000


@pytest.mark.parametrize("fault", [400, 403, 301])
def test_what_no_other_try_would_mend_is_said_at_once(fault: int, bucket: Bucket, s3: S3) -> None:
    s3.fault = lambda request: fault
    with pytest.raises(AccessError, match=r"s3://bucket/some/folder/a (was refused|may not be read)"):
        read(bucket, "a")
    assert len(s3.asked) == 1


def test_a_server_that_is_not_there_is_told_soon(monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
    monkeypatch.setattr("gemscope.activations.bucket._FIRST", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=r"given up after 0.2 s, at last no connection"):
        Bucket.at(ADDRESS).has("a")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_no_message_holds_a_key_or_what_the_server_said_of_one(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)
    monkeypatch.setenv("GEMSCOPE_PATIENCE", "2")
    said = []
    for fault in (400, 403, 404, 412, 500, 503, "cut", "lost"):
        bucket = Bucket.at(ADDRESS)
        s3.objects["bucket/some/folder/a"] = b"12345"
        s3.fault = lambda request, fault=fault: fault
        for do in (partial(read, bucket, "a"), partial(put, bucket, "b", b"x"), bucket.names, partial(bucket.has, "a")):
            try:
                do()
            except GemscopeError as error:
                said.append(error)
    assert len(said) > 20
    for error in said:
        chained = [error, error.__cause__, None if error.__suppress_context__ else error.__context__]
        for one in chained:
            assert one is None or not any(secret in f"{one!r}" for secret in (KEY, SECRET, "Signature"))
    assert KEY not in repr(bucket) + str(bucket)


def test_an_address_with_a_key_in_it_is_refused_and_not_repeated() -> None:
    for address in ("s3://AKIA123:geheim@bucket/x", "s3://bucket/x?X-Amz-Signature=geheim"):
        with pytest.raises(InputError, match="holds no keys") as raised:
            place_of(address)
        assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://bucket", "s3:///a", "s3://bucket/a//b", "s3://bucket/../b", "gs://b u/a"])
def test_what_names_no_folder_in_a_bucket_is_one_line(address: str) -> None:
    with pytest.raises(InputError, match=r"names no folder in a bucket: expected ..://BUCKET/FOLDER"):
        place_of(address)


def test_a_bucket_without_the_package_says_what_to_install(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependency, match=r'needs the obstore package: pip install "gemscope\[s3\]"'):
        Bucket.at(ADDRESS).has("a")


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_is_fetched_once_and_again_when_another_is_put_there(bucket: Bucket, s3: S3) -> None:
    taken(bucket, "deep/a.bin", b"one")
    path = bucket.kept("deep/a.bin")
    assert (path.name, path.read_bytes()) == ("a.bin", b"one")
    assert bucket.kept("deep/a.bin") == path
    assert s3.count("GET") == 1
    taken(bucket, "deep/a.bin", b"two")
    assert bucket.kept("deep/a.bin").read_bytes() == b"two"


def test_what_has_another_checksum_is_damaged_and_no_copy_stays(bucket: Bucket, s3: S3) -> None:
    taken(bucket, "a", b"one")
    with pytest.raises(CorruptFile, match=r"s3://bucket/some/folder/a is damaged: its checksum is another"):
        bucket.kept("a", "0" * 64)
    with pytest.raises(CorruptFile):
        bucket.kept("a", "0" * 64)


def test_copies_are_bounded_and_the_ones_used_last_stay(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMSCOPE_CACHE_SIZE", "2.5kB")
    bucket = Bucket.at(ADDRESS)
    for name in "abcd":
        taken(bucket, name, name.encode() * 1000)
    paths = {name: bucket.kept(name) for name in "ab"}
    assert bucket.cached("c") is None  # what this process is at is not taken away
    with pytest.raises(StorageFull, match=r"no room in the cache for s3://.*/c: GEMSCOPE_CACHE_SIZE bounds it \(now"):
        bucket.kept("c")
    monkeypatch.setattr("gemscope.activations.cached._used", set())  # as another process
    bucket.kept("b")
    bucket.kept("c")
    assert [path.exists() for path in paths.values()] == [False, True]
    with pytest.raises(NotFound, match=r"no object s3://bucket/some/folder/nothing"):
        bucket.kept("nothing")


def test_the_caches_bound_is_bytes(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(bucket, "a", b"x")
    monkeypatch.setenv("GEMSCOPE_CACHE_SIZE", "much")
    with pytest.raises(InputError, match="GEMSCOPE_CACHE_SIZE=much: expected bytes, such as 200GB"):
        bucket.kept("a")
