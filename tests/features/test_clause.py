"""What a feature promotes in a few words: kin that stand out, each word once; nothing where that says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gemscope.features.clause import FAMILY, KIN, LOOKED_AT, STANDS_OUT, TOGETHER, clause


def told(*families: list[str], alone: tuple[str, ...] = (), least: float = STANDS_OUT) -> str:
    """Tokens of families one after another, then some that are nobody's kin."""
    tokens = [token for family in families for token in family] + list(alone)
    kinship = np.eye(len(tokens))
    at = 0
    for family in families:
        kinship[at : at + len(family), at : at + len(family)] = KIN
        at += len(family)
    return clause(tokens, [least] * len(tokens), kinship)


def test_kin_that_stand_out_are_told_and_variants_of_a_word_once() -> None:
    assert told([" pricing", " payment", " Payment", "payment", " payments", " refund"]) == "pricing, payment, refund"
    assert told([" Reports", " report", "report"]) == "report"
    assert told([" boxes", " box", " Box"]) == "box"
    assert told([" Paris", " France", " French"]) == "Paris, France, French"


def test_those_that_are_nobody_s_kin_are_not_told() -> None:
    assert told([" flow", " flows", " river"], alone=("ior", " notch")) == "flow, river"


def test_several_small_families_are_told_together() -> None:
    assert told([" price", " pricing"], [" money", "Money"], alone=(" larv",)) == ""
    assert told([" price", " pricing"], [" money", "Money"], [" fee", " fees"]) == "price, pricing, money, fee"
    assert FAMILY == 3
    assert TOGETHER == 5


def test_too_few_and_too_low_and_too_late_say_nothing() -> None:
    assert told([" flow", " flows"]) == ""
    assert told([" flow", " flows", " river"], least=STANDS_OUT - 0.01) == ""
    assert clause([], [], np.zeros((0, 0))) == ""
    many = [f" w{chr(97 + i)}x" for i in range(LOOKED_AT)] + [" flow", " flows", " river"]
    kinship = np.eye(len(many))
    kinship[LOOKED_AT:, LOOKED_AT:] = 1
    assert clause(many, [9.0] * len(many), kinship) == ""


@pytest.mark.parametrize("tokens", [[",", ",,", "..."], ["12", " 13", "14"], [" a", " b", " c"], ["_x1", "==", "\n\n"]])
def test_what_is_no_word_is_not_told(tokens: list[str]) -> None:
    assert told(tokens) == ""


def test_parts_of_words_count_for_kin_and_are_not_told() -> None:
    assert told(["ilience", "ilient", "alignment"]) == ""
    assert told([" align", "alignment", "aligned"]) == "align"
    assert told([" limited", " limits", "Lim"]) == "limited, limits"


def test_words_of_scripts_without_cases_are_told() -> None:
    assert told(["文件", "文档", "檔案"]) == "文件, 文档, 檔案"


def test_it_stays_short_and_hostile_letters_are_made_visible() -> None:
    long = [" " + letter * 18 for letter in "abcdef"]
    assert told(long) == ", ".join(word.strip() for word in long[:2])
    assert len(told([" one", " two", " three", " four", " five"]).split(", ")) == 4
    assert "\u202e" not in told([" ab\u202ec", " abd", " abe", " abf"])
