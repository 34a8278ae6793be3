"""Texts that go on."""

from __future__ import annotations

import pytest

from continued import ending_with
from gemscope.activations.model import LanguageModel


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token ends a text, so that all have the same number of tokens to compare."""
    monkeypatch.setattr(LanguageModel, "ends", ending_with())
