"""Many read and write at once."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path

import pytest

from atlases import FIRST_WORD
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import InputError


def test_a_closed_atlas_says_so(copy: Path) -> None:
    atlas = Atlas(copy)
    atlas.close()
    atlas.close()
    for wrong in (lambda: atlas[0], lambda: atlas.explain(0, "x"), lambda: atlas.search("x")):
        with pytest.raises(InputError, match="was closed"):
            wrong()


ROUNDS = 12
"""Of each reader. Most of the labels are written in the meantime: the writer is one of 65 who take turns."""


def test_sixty_four_threads_read_while_one_writes_labels(copy: Path) -> None:
    failures: list[BaseException] = []
    started = threading.Barrier(65)

    def read(seed: int) -> None:
        chance = random.Random(seed)
        started.wait()
        try:
            for _ in range(ROUNDS):
                page = atlas[chance.randrange(40)]
                assert page.label is None or page.explanations
                atlas.search("words like", limit=3)
                assert len(atlas.summaries(order="label", limit=5)) == 5
                atlas.by_token(FIRST_WORD + chance.randrange(60))
                atlas.tokens_like("sun")
        except BaseException as error:
            failures.append(error)

    with Atlas(copy) as atlas:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(64)]
        for thread in threads:
            thread.start()
        started.wait()
        made = [atlas.explain(number, f"label {number}") for number in range(20, 40)]
        for number, one in enumerate(made[:5], 20):
            atlas.forget(number, one.id)
        for thread in threads:
            thread.join()
        assert failures == []
        assert atlas[30].label == "label 30"
    assert verify(copy) == []


def test_a_reader_holds_on_while_another_closes_the_atlas(copy: Path) -> None:
    atlas = Atlas(copy)
    with atlas._database.reading() as db:
        atlas.close()
        assert db.execute("SELECT count(*) FROM feature").fetchone() == (40,)
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")
