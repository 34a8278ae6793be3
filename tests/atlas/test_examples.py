"""Examples: where they lie, and the text around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlases import FIRST_WORD, HOSTILE, PLAN, written
from dashboards import expected, shown
from gemscope.atlas.entry import Entry
from gemscope.atlas.reader import Atlas
from gemscope.errors import NotFound


def test_the_examples_of_a_planted_feature_peak_on_its_token(planted: Atlas) -> None:
    seen = 0
    for entry in PLAN.entries():
        page = planted[entry.index]
        assert (page.count, page.max) == (entry.count, entry.max)
        assert page.tokens == planted.manifest.tokens
        assert shown(page) == expected(entry, PLAN.corpus(), PLAN.tokens(), planted.manifest)
        for example in page.examples:
            seen += 1
            assert example.ids[example.peak] == PLAN.token(entry.index)
            assert example.tokens[example.peak] == PLAN.word(PLAN.token(entry.index))
        assert [one.value for one in page.strongest] == sorted((one.value for one in page.strongest), reverse=True)
        for number, interval in enumerate(page.intervals):
            assert all(interval.low <= one.value < interval.high for one in page.within(number))
    assert seen > 200


def test_without_its_ranges_a_feature_has_its_strongest_examples_and_says_how_many_others_there_are(
    planted: Atlas,
) -> None:
    seen = 0
    for whole in planted:
        found = planted.dashboard(whole.index, ranges=False)
        assert found.left_out == len(whole.examples) - len(whole.strongest)
        assert replace(found, left_out=0) == replace(whole, examples=whole.strongest)
        assert whole.left_out == 0
        seen += found.left_out
    assert seen > 20
    with pytest.raises(NotFound):
        planted.dashboard(len(planted), ranges=False)


def test_an_example_knows_its_document_and_its_place_in_it(planted: Atlas) -> None:
    ids, length = PLAN.corpus().reshape(-1), PLAN.length
    starts = [start for start, _, _ in PLAN.starts()]
    documents: list[list[int]] = [[] for _ in starts]
    for flat, id_ in enumerate(ids.tolist()):
        if flat % length and id_ >= 0:  # BOS and padding are no document's
            documents[sum(start <= flat for start in starts) - 1].append(id_)
    for feature in (0, 1, 2, 3):
        for example in planted[feature].examples:
            whole = documents[example.document]
            assert whole[example.position] == example.ids[example.peak]
            behind = [id_ for id_ in example.ids[example.peak :] if id_]
            if example.position + len(behind) <= len(whole):
                assert whole[example.position : example.position + len(behind)] == behind
    assert planted.document(4) == ("book 1 <b>", "CC0-1.0")
    assert list(planted.documents()) == PLAN.starts()
    with pytest.raises(NotFound, match="no document 9: the corpus has 9"):
        planted.document(9)


def test_without_documents_an_example_says_that_its_place_is_not_known(tmp_path: Path) -> None:
    entry = Entry(
        index=0,
        count=1,
        max=1.0,
        mean=1.0,
        positions=np.array([1]),
        intervals=np.array([-1]),
        owners=np.array([0]),
        columns=np.array([1]),
        values=np.array([1.0], np.float32),
    )
    with written(tmp_path / "a", np.array([[1, 2]]), [entry], {1: b"x", 2: b"y"}) as atlas:
        example = atlas[0].examples[0]
        assert (example.document, example.position, example.tokens) == (-1, -1, ["x", "y"])


def test_hostile_tokens_come_out_as_they_are_and_characters_are_put_together(planted: Atlas) -> None:
    example = planted[0].examples[0]
    assert example.value == 99
    tokens = example.tokens[example.peak - len(HOSTILE) : example.peak]
    assert tokens[:10] == [token.decode() for token in HOSTILE[:10]]
    assert tokens[10:] == ["", "€", "", "😀", "\ufffd"]
    assert len(tokens[9]) == 100_000
    ids = list(range(1, 1 + len(HOSTILE)))
    assert planted.text(ids) == tokens
    assert planted.text([11]) == [""]
    assert planted.text([10**9, FIRST_WORD]) == ["\ufffd", " the"]


def test_a_character_begun_in_front_of_a_window_is_completed_in_it(tmp_path: Path) -> None:
    entry = Entry(
        index=0,
        count=1,
        max=1.0,
        mean=1.0,
        positions=np.array([3]),
        intervals=np.array([-1]),
        owners=np.array([0]),
        columns=np.array([3]),
        values=np.array([1.0], np.float32),
    )
    texts = {0: b"\xf0", 1: b"\x9f", 2: b"\x98", 3: b"\x80"}
    with written(tmp_path / "a", np.array([[0, 1, 2, 3]]), [entry], texts, before=0, after=0) as atlas:
        assert atlas[0].examples[0].tokens == ["😀"]


def test_a_token_alone_that_is_no_text_shows_its_bytes(planted: Atlas) -> None:
    logits = [one for page in planted for one in (*page.promoted, *page.suppressed)]
    broken = [one.token for one in logits if one.id == 11]
    assert broken
    assert set(broken) == {"\\xe2"}
