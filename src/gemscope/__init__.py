"""gemscope: a microscope for language models. The public names, each loaded when it is first used."""

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME = {name: module for module, name in re.findall(r"^from (gemscope\.\S+) import (\w+) as \2$", _STUB, re.MULTILINE)}
"""Public name → the module that holds it, out of the one list, which type checkers read too."""

__all__ = ["__version__", "errors", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("gemscope.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'gemscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
