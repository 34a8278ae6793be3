"""Labels beside other things: cut where they are long, but never what they say of themselves."""

import pytest

from gemscope.pages.labels import clipped_label, meaning, said, said_of


@pytest.mark.parametrize(
    ("label", "most", "shown"),
    [
        ("money", 24, "money"),
        ("a word that is long and goes on", 12, "a word that…"),
        ("a word that is long and goes on (when strong)", 34, "a word that is long… (when strong)"),
        ("a word that is long and goes on (when strong)", 24, "a word that is long and…"),
        ("a (b) and then the rest of it all", 20, "a (b) and then the…"),
        ("money; promotes pay, price, payment", 24, "money; promotes pay"),
        ("money; promotes pay, price, payment", 26, "money; promotes pay, price"),
        ("money; promotes payment", 18, "money"),
        ("a word that is long and goes on (when strong); promotes pay", 34, "a word that is long… (when strong)"),
        ("of\nthe\u202e", 80, "of↵the\\u202e"),
    ],
)
def test_a_long_label_is_cut_and_keeps_its_reserve(label: str, most: int, shown: str) -> None:
    assert clipped_label(label, most) == shown
    assert len(shown) <= max(most, len(label) + 5)


def test_what_a_feature_promotes_is_a_second_clause_or_all_that_is_known_of_it() -> None:
    assert meaning("money", "pay, price") == "money; promotes pay, price"
    assert meaning(None, "pay, price") == "promotes pay, price"
    assert meaning("money", None) == meaning("money", "") == "money"
    assert meaning(None, None) is None


def test_what_is_known_of_a_feature_follows_what_it_does() -> None:
    assert said_of(["add 1", "add 2"], ["of\n", None]) == ["add 1 · what it stands for: of↵", "add 2"]
    assert said_of(["add 1"], []) == ["add 1"]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("money", "money"),
        ("English names: `William`, `Henry` (in part)", "English names: “William”, “Henry” (in part)"),
        ("“of” after `by`", "“of” after “by”"),
        ("named as such (``the `r` modifier``, `the X`)", "named as such (“the `r` modifier”, “the X”)"),
        ('`File "<stdin>"`', '“File "<stdin>"”'),
        # A backtick may be the token itself, and quotes may be within a token.
        ("“`” or “´”", "“`” or “´”"),
        ("“#” or “`”; “[” exactly, `let`", "“#” or “`”; “[” exactly, “let”"),
        ("“·``” exactly", "“·``” exactly"),
        ("a lone ` stays", "a lone ` stays"),
        ("`“in-place”`", "“in-place”"),
        ("`”, “`", "`”, “`"),
        ("“””, `a`", "“””, “a”"),
        # Bytes that are no character, by the words that pages have for them elsewhere; those of text stay.
        (r"“\xe2\x94” after `\xc2`", "the first 2 bytes of “─” after the first byte of “¡”"),
        (r"a format string (`\x0b`)", r"a format string (“\x0b”)"),
        ("`of\n`\u202e", "“of↵”\\u202e"),
    ],
)
def test_tokens_in_labels_are_quoted_in_one_way_and_bytes_are_told_in_words(label: str, shown: str) -> None:
    assert said(label) == shown
    assert clipped_label(label, 200) == shown
