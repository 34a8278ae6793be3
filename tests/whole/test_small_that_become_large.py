"""Small files that claim to be large, or unpack to it: refused before room is made for what they say."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atlases import planted_atlas
from gemscope.atlas.files import packing
from processes import python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are Linux's")
ROOM = 400 << 20
"""Bytes of address space that reading may take beyond what the imports took: what was claimed needs far more."""


def _vocabulary(db: sqlite3.Connection, first: int, steps: list[int]) -> None:
    """A block of tokens that begins at an id, those after it so many further on."""
    block = (
        np.array(steps, np.int64),
        np.ones(len(steps) + 1, np.int64),
        np.zeros(0, np.int64),
        np.full(len(steps) + 1, ord("a"), np.uint8),
    )
    db.execute("INSERT OR REPLACE INTO token VALUES (?, ?)", (first, packing.pack(block)))


def _late_block(db: sqlite3.Connection) -> None:
    _vocabulary(db, 300_000_000, [1])


def _far_token(db: sqlite3.Connection) -> None:
    _vocabulary(db, 0, [200_000_000])


def _bomb(db: sqlite3.Connection) -> None:
    """260 kB of zlib that unpack to 256 MB."""
    deflating = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflating.compress(bytes(256 << 20)) + deflating.flush()
    assert len(body) < 270_000
    db.execute("UPDATE page SET packed = ? WHERE id = 0", (zlib.crc32(body).to_bytes(4, "little") + body,))


PROGRAM = """
import resource, sys
import gemscope as gs
from gemscope.errors import GemscopeError
from gemscope.atlas.verify import verify
import numpy, torch, pyarrow  # all that is loaded is loaded before
def seen(path):
    with gs.Atlas(path) as atlas:
        atlas.text([0]), atlas[0], atlas.search("a")
def texts(path):
    for document in gs.Corpus.read(path):
        document.text
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[3]),) * 2)
try:
    {"seen": seen, "texts": texts}[sys.argv[1]](sys.argv[2])
    print("read")
except GemscopeError as error:
    print(type(error).__name__, error)
"""


def said(what: str, path: Path, room: int = ROOM) -> str:
    """What another process, with little memory, says of a file."""
    done = python("-c", PROGRAM, what, str(path), str(room), env=os.environ)
    assert done.code == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_late_block, "its tokens are not among ids from 0 to 4,194,303"),
        (_far_token, "its tokens are not among ids from 0 to 4,194,303"),
        (_bomb, "unpacks to more than 8,388,608 bytes"),
    ],
)
def test_an_atlas_that_claims_gigabytes_is_refused_in_little_memory(
    harm: Callable[[sqlite3.Connection], None], message: str, tmp_path: Path
) -> None:
    planted_atlas(tmp_path / "a.atlas", features=8, rows=6, length=32, vocabulary=60).close()
    before = (tmp_path / "a.atlas" / "atlas.sqlite").stat().st_size
    db = sqlite3.connect(tmp_path / "a.atlas" / "atlas.sqlite")
    with db:
        harm(db)
    db.close()
    assert (tmp_path / "a.atlas" / "atlas.sqlite").stat().st_size < before + 400_000
    line = said("seen", tmp_path / "a.atlas")
    assert line.startswith("CorruptFile ")
    assert message in line


def _zeros(path: Path, unpacked: int) -> None:
    """A gzip file of one line without an end."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(unpacked >> 20):
            file.write(b"a" * (1 << 20))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_small_file_of_one_endless_line_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    _zeros(tmp_path / name, 1 << 30)
    assert (tmp_path / name).stat().st_size < 8 << 20
    line = said("texts", tmp_path / name)
    assert line.startswith("CorruptFile ")
    assert "unpacks to a text or a line of more than" in line


def test_a_long_text_is_read_all_the_same(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(json.dumps({"text": "a" * (20 << 20)}).encode())
    assert said("texts", tmp_path / "a.jsonl.gz") == "read"
    with gzip.open(tmp_path / "b.txt.gz", "wb", compresslevel=1) as file:
        file.write(b"a" * (20 << 20))
    assert said("texts", tmp_path / "b.txt.gz") == "read"
