"""What a feature promotes in a few words, where its promoted tokens say something together: words that stand out in
both halves of the text, and that the unembedding holds for kin.

Of the tokens that stand out at least `STANDS_OUT` in both halves those are taken that have kin among them, by a
`kinship` of `KIN` or more. There has to be a family of `FAMILY`, or `TOGETHER` of them in several. Any direction
promotes some tokens: of random ones the rule gives words to 5 in 100, of the bundled SAE's features to 29, and of those
words 91 in 100 are among the 20 tokens that steering raises most, of 49,152 (tools/effect_words.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from gemscope.text.printable import readable

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

LOOKED_AT = 12
"""Promoted tokens among which words are looked for."""
STANDS_OUT = 3.5
"""Standard deviations above the vocabulary's mean, in each half of the text."""
KIN = 0.3
FAMILY, TOGETHER = 3, 5
_WORDS, _ROOM = 4, 40
"""Of the clause: words, and characters."""
_LETTERS = re.compile(r"\s?[^\W\d_](?:[\w'’-]*[^\W\d_])?")
"""A word or a part of one, with the blank before it."""


def clause(tokens: Sequence[str], least: Sequence[float], kinship: Floats) -> str:
    """Words, parted by commas, of what a feature promotes; "" where they would say nothing.

    tokens: [K] most promoted first; least: [K] how far each stands out in the half of the text in which it does less;
    kinship: [K, K] how near in meaning the model holds them (`promoting.Promotions`). Variants of a word (case, blank,
    plural) are told once.
    """
    able = [
        place
        for place, (token, height) in enumerate(zip(tokens[:LOOKED_AT], least, strict=False))
        if height >= STANDS_OUT and len(token.strip()) > 1 and _LETTERS.fullmatch(token)
    ]
    families = [some for some in _families(able, kinship) if len(some) > 1]
    if max(map(len, families), default=0) < FAMILY and sum(map(len, families)) < TOGETHER:
        return ""
    return ", ".join(_told([tokens[place] for place in sorted(chain(*families))]))


def _families(places: Sequence[int], kinship: Floats) -> list[list[int]]:
    """Places that hang together, each family in ascending order; those first that begin first."""
    left, found = list(places), []
    while left:
        family = [left.pop(0)]
        for one in family:  # it grows meanwhile
            kin = [other for other in left if kinship[one, other] >= KIN]
            family += kin
            left = [other for other in left if other not in kin]
        found.append(sorted(family))
    return found


def _told(tokens: Sequence[str]) -> list[str]:
    """Each word once, in the order of the tokens, as many as there is room for; parts of words are passed over."""
    words = dict[str, str]()
    for token in tokens:
        if token[0].islower():  # the rest of a word that another token begins
            continue
        word = token.strip()
        bare = word.casefold()
        one = next((known for known in (bare, bare.removesuffix("s"), f"{bare}s", f"{bare}es") if known in words), bare)
        words[one] = min(words.get(one, word), word, key=lambda form: (not form.islower(), len(form)))
    told = list[str]()
    for bare, form in words.items():
        if not form.islower() and any(other != bare and other.startswith(bare) for other in words):
            continue  # it may as well be the beginning of a word
        word = readable(form)
        if len(told) == _WORDS or (told and len(", ".join((*told, word))) > _ROOM):
            break
        told.append(word)
    return told
