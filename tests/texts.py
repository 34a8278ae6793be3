"""Texts of many lengths, and a small atlas of them."""

from __future__ import annotations

import random

from gemscope.atlas.describe.gather import DescribeConfig

WORDS = [
    "the",
    "end",
    "and",
    "ending",
    "river",
    "sang",
    "of",
    "hours",
    "thinking",
    "sun",
    "another",
    "inner",
    "order",
    "round",
    "there",
    "other",
]

CONFIG = DescribeConfig(
    top=5,
    each=2,
    before=17,
    after=4,
    length=24,
    batch=3,
    logits=4,
    neighbours=3,
    partners=3,
    effect=0,
)


def varied(seed: int, count: int = 25) -> list[str]:
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(count)]
    return [*texts, *texts[:3]]  # some of it twice
