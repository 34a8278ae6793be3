"""How the tests check types: beartype, with an int allowed where a float is asked for (PEP 484's numeric tower), on every
function of the package. Of functions within functions, which are made anew in each pass through a model, those that
speak of shapes: to prepare the others took longer than all that they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """For what is imported of the package from here on."""
    jaxtyping.jaxtyped = _lean
    jaxtyping.install_import_hook("gemscope", "typecheck.checked")


def _lean(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator that the import hook writes above every function and class."""

    def decorated(given: Any) -> Any:
        within = "<locals>" in getattr(given, "__qualname__", "")
        speaks = any('"' in str(hint) for hint in getattr(given, "__annotations__", {}).values())
        return given if within and not speaks else _jaxtyped(given, typechecker=typechecker)

    return decorated
