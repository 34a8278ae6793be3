"""A corpus of three short texts."""

import pytest

from written_texts import jsonl


@pytest.fixture
def three(tmp_path):
    return jsonl(tmp_path / "three.jsonl", [{"text": "one"}, {"text": "two"}, {"text": "three"}])
