"""Strips of marked text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from every_page import HOSTILE, example
from gemscope.pages import feature, glance, strips
from gemscope.text.pieces import completed
from gemscope.text.printable import clipped, readable
from html_tree import parse


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*HOSTILE, "␞", ""])), min_size=1, max_size=80),
    data=st.data(),
)
def test_a_strip_says_every_token_and_marks_the_active_ones_whatever_they_hold(
    tokens: list[str], data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 8.0, 1e9]), min_size=len(tokens), max_size=len(tokens)))
    peak = data.draw(st.integers(0, len(tokens) - 1))
    values[peak] = 8.0
    one = replace(example(tokens, values), peak=peak)
    expected = [readable(clipped(token)) for token in tokens]
    active = [index for index, value in enumerate(values) if value > 0]
    marked = [expected[index] or "◦" for index in active]
    for made in (strips.example(one, 8.0), strips.strip(tokens, values, 8.0)):
        tree = parse(made)
        assert {element.tag for element in tree} <= {"", "token-strip", "span", "mark", "br"}
        assert [mark.text for mark in tree.all("mark")] == marked
        whole = [marked[active.index(index)] if index in active else text for index, text in enumerate(expected)]
        assert tree.text == "".join(whole)
        assert tree.text.count("↵") - sum(token.count("↵") for token in map(clipped, tokens)) == len(tree.all("br"))
    assert tree.one("token-strip").attributes["dir"] == "auto"


def test_an_example_keeps_what_is_far_from_its_token_apart() -> None:
    tokens, values = [f"{index} " for index in range(64)], [0.0] * 64
    values[30], values[2] = 5.0, 1.0
    tree = parse(strips.example(example(tokens, values), 5.0))
    before, after = tree.one(class_="b"), tree.one(class_="e")
    assert before.text == "".join(tokens[:30])
    assert after.text == "".join(tokens[30:])
    far = tree.all(class_="f")
    assert [one.text for one in far] == ["".join(tokens[:14]), "".join(tokens[47:])]
    assert tree.one("mark", class_="p").text == "30 "
    short = parse(strips.example(example(tokens[:8], [0.0] * 7 + [5.0]), 5.0))
    assert not short.all(class_="f")


def test_what_lies_between_active_tokens_is_one_run_of_text() -> None:
    made = strips.strip([" a"] * 50, [0.0] * 49 + [1.0], 1.0)
    assert len(parse(made).one("token-strip").children) == 2
    assert len(made) < 200


def test_a_token_that_does_not_count_is_set_apart_and_its_value_not_shown() -> None:
    tree = parse(strips.strip(["<bos>", " a", " b"], [99.0, 1.0, 0.0], 2.0, counted=[False, True, True]))
    assert [mark.text for mark in tree.all("mark")] == [" a"]
    assert tree.one("span", class_="u").attributes["title"] == "not counted"
    assert "99" not in strips.strip(["<bos>", " a"], [99.0, 1.0], 2.0, counted=[False, True])


def test_shades_grow_with_the_logarithm_of_the_share() -> None:
    shares = np.linspace(0, 1, 1001)
    opacity = 0.05 + np.log10(1 + 9 * shares) * 0.95
    got = [strips.shade(share) for share in shares.tolist()]
    np.testing.assert_allclose(got, (opacity - 0.05) / 0.95 * 9, atol=0.5 + 1e-9)
    assert got[0] == 0
    assert got[-1] == 9
    assert strips.shade(7.0) == 9
    assert strips.shade(float("inf")) == 9


SMILE = completed([b" a", b"\xf0\x9f", b"\x98", b"\x82", b" b"])
"""A character in three tokens, between two others."""


def test_pieces_of_a_character_are_one_mark_that_says_their_bytes_and_activations() -> None:
    tree = parse(strips.strip(SMILE, [0.0, 0.5, 2.0, 1.0, 0.0], 2.0))
    (mark,) = tree.all("mark")
    assert (mark.text, mark.attributes["title"]) == ("😂", "2 = f0 9f: 0.5 · 98: 2 · 82: 1")
    assert mark.attributes["class"] == "a9 p"
    assert tree.text == " a😂 b"
    one = replace(example(SMILE, [0.0, 0.0, 2.0, 0.0, 0.0]), tokens=SMILE)  # which fires on a piece
    tree = parse(strips.example(one, 2.0))
    assert (tree.one(class_="b").text, tree.one(class_="e").text) == (" a", "😂 b")
    assert tree.one("mark", class_="p").attributes["title"] == "2 = f0 9f · 98: 2 · 82"


def test_a_character_in_pieces_says_its_bytes_where_nothing_fires_too() -> None:
    (mark,) = parse(strips.strip(SMILE, [0.0] * 5, 1.0, counted=[False, False, True, True, True])).all("mark")
    assert (mark.text, mark.attributes) == ("😂", {"class": "c", "title": "f0 9f · 98 · 82"})
    blank = completed([b" \xf0\x9f", b"\x98", b"\x82\xc3", b"\xa9"])  # which begin and end within characters
    tree = parse(strips.strip(blank, [1.0, 0.0, 0.0, 2.0], 2.0))
    said = [(mark.text, mark.attributes["title"]) for mark in tree.all("mark")]
    assert said == [(" ", "1"), ("😂", "1 = f0 9f: 1 · 98 · 82"), ("é", "2 = c3 · a9: 2")]
    whole = completed([" é".encode(), "日本".encode(), "مرحبا".encode()])
    assert not parse(strips.strip(whole, [0.0] * 3, 1.0)).all("mark")


def test_a_piece_by_itself_has_a_character_beside_it_that_begins_so() -> None:
    code = parse(strips.token("\\xe2\\x94")).one("code")
    assert (code.text, code.attributes["title"]) == ("\\xe2\\x94 ─…", "the first 2 bytes of “─”")
    assert parse(strips.token(SMILE[1])).one("code").text == "\\xf0\\x9f 🀀…"
    assert parse(strips.token("\\x82")).one("code").text == "\\x82"
    assert "title" not in parse(strips.token(" a")).one("code").attributes


def test_a_feature_that_fires_on_a_piece_is_shown_on_the_whole_character_in_lists_and_in_terminals() -> None:
    values = [0.0, 0.0, 2.0, 0.0, 0.0]
    tree = parse(glance.snippet(replace(example(SMILE, values), tokens=SMILE)))
    assert (tree.one("mark").text, tree.text) == ("😂", " a😂 b")
    assert feature.snippet(SMILE, values, 2, 2.0, 40).plain == " a[[😂]] b"
