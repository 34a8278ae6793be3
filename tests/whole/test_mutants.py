"""The tool that asks whether the tests would notice: what it changes is changed in what runs."""

from __future__ import annotations

import gc
import importlib
import inspect
from pathlib import Path

import pytest

from gemscope.text import pieces

TOOLS = Path(__file__).parents[2] / "tools"


def test_a_mutant_takes_the_place_of_a_function_that_the_tests_have_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is checked for its types, and frozen, so that nobody looks for garbage in it."""
    monkeypatch.syspath_prepend(TOOLS)
    mutants = importlib.import_module("mutants")
    module = "text/pieces.py"
    source = (mutants.SOURCES / module).read_text(encoding="utf-8")
    changed = source.replace('errors="backslashreplace"', 'errors="ignore"')
    function = inspect.unwrap(pieces.spelt)
    code = function.__code__
    gc.freeze()
    try:
        assert pieces.spelt(b"a\xe2") == "a\\xe2"
        assert mutants.replace_functions(mutants.Mutant(module, 0, "", "", "", source, True)) == 0
        assert mutants.replace_functions(mutants.Mutant(module, 0, "", "", "", changed, True)) == 1
        assert pieces.spelt(b"a\xe2") == "a"
    finally:
        function.__code__ = code
        gc.freeze()
    assert pieces.spelt(b"a\xe2") == "a\\xe2"
