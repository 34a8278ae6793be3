"""From text to tokens, and from tokens to features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlases import FIRST_WORD, HOSTILE, PLAN, written
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import hits
from gemscope.atlas.reader import Atlas
from gemscope.errors import CorruptFile


def test_tokens_are_found_by_their_text(planted: Atlas) -> None:
    texts = {id_: PLAN.word(id_) for id_ in range(FIRST_WORD, PLAN.vocabulary)}
    found = planted.tokens_like(" sun", limit=100)
    assert found[0][1] == " sun"
    folded = [text for _, text, _ in found[1:] if text.strip().casefold() == "sun"]
    assert sorted(folded) == sorted(
        text for text in texts.values() if text.strip().casefold() == "sun" and text != " sun"
    )
    rest = [text for _, text, _ in found[1 + len(folded) :]]
    assert len(rest) > 3
    assert all(text.strip().casefold().startswith("sun") for text in rest)
    features = {}
    for page in planted:
        for token in {example.ids[example.peak] for example in page.examples}:
            features[token] = features.get(token, 0) + 1
    assert any(features.get(id_) for id_, _, _ in found)
    assert all(count == features.get(id_, 0) for id_, _, count in found)
    assert planted.tokens_like(" sun", limit=2) == found[:2]
    assert planted.tokens_like("") == []
    assert [text for _, text, _ in planted.tokens_like("\n")] == ["\n"]
    assert planted.tokens_like("<script>")[0][1] == HOSTILE[0].decode()


def test_the_commonest_way_of_writing_a_word_comes_first(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3, 4, 1, 2, 3]])
    texts = {0: b"x", 1: b" Paris", 2: b"Paris", 3: b"paris", 4: b" parish"}
    peaks = [1, 1, 1, 2, 3, 3, 4, 4, 4, 4]
    entries = [one_example(index, place) for index, place in enumerate(peaks)]
    with written(tmp_path / "atlas", ids, entries, texts) as atlas:
        for typed in ("Paris", " Paris", "paris", "PARIS"):
            assert atlas.tokens_like(typed) == [(1, " Paris", 3), (3, "paris", 2), (2, "Paris", 1), (4, " parish", 4)]


def one_example(index: int, place: int) -> Entry:
    whole, one = np.array([place]), np.array([1.0], np.float32)
    edges = np.array([0.0, 2.0], np.float32)
    return Entry(
        index=index, count=1, max=1.0, mean=1.0, step=1.0, histogram=np.array([0, 1]), edges=edges,
        interval_counts=np.array([1]), positions=whole, intervals=np.array([-1]), owners=np.array([0]), columns=whole,
        values=one,
    )  # fmt: skip


def test_a_token_leads_to_the_features_whose_examples_peak_on_it(planted: Atlas) -> None:
    pages = list(planted)
    for token in range(PLAN.vocabulary):
        wanted = []
        for page in pages:
            peaks = [one.value for one in page.examples if one.ids[one.peak] == token]
            if peaks:
                wanted.append((page.index, len(peaks), max(peaks) / page.max))
        wanted.sort(key=lambda one: (-one[1], -np.float16(one[2]), one[0]))
        found = planted.by_token(token)
        assert [(one.summary.feature, one.examples) for one in found] == [one[:2] for one in wanted]
        np.testing.assert_allclose([one.strength for one in found], [one[2] for one in wanted], rtol=2**-10)
        assert planted.by_token(token, limit=1) == found[:1]
    for unknown in (-1, 10**6, 10**40):
        assert planted.by_token(unknown) == []


def test_features_of_a_token_beyond_two_bytes_are_kept() -> None:
    some = hits.of([3, 70_000, 5], [2, 300, 300], [0.5, 0.25, 1.0])
    found = hits.unpack(hits.pack(some), 3, 200_000)
    assert found["feature"].tolist() == [5, 70_000, 3]
    assert found["examples"].tolist() == [255, 255, 2]
    with pytest.raises(CorruptFile):
        hits.unpack(hits.pack(some)[:-1], 3, 200_000)
