"""Files of texts, and the texts that a corpus gives."""

import gzip
import json
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[1] / "src" / "gemscope" / "data" / "sample"


def texts(corpus):
    return [document.text for document in corpus]


def jsonl(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def refused(error, pattern, corpus_of):
    with pytest.raises(error, match=pattern) as caught:
        list(corpus_of())
    assert "\n" not in str(caught.value)


ODD = [None, "", " \n", 1984, 0.5, True, ["a"], {"a": "b"}, "half \ud83d of a pair"]


WHY = {"null": 2, "blank": 2, "other": 5, "broken": 1}
"""Of ODD and a row without the field."""


TOLD = (
    "10 rows passed over: 2 blank, 2 null or without the field, 5 a number, a list or another thing than text, "
    "1 with half a surrogate pair, which no tokenizer reads"
)


def with_odd_rows(path):
    odd = [{"text": value, "source": "odd"} for value in ODD] + [{"body": "no text here"}]
    return jsonl(path, [odd[0], odd[3], {"text": "first"}, *odd[1:3], *odd[4:], {"text": "last", "source": 7}])
