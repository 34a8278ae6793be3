"""How the tests check types: beartype, with an int allowed where a float is asked for (PEP 484's numeric tower), on every
function of the package, and jaxtyping where its signature speaks of shapes. Of functions within functions, which are
made anew in each pass through a model, those alone: to prepare the others took longer than all that they do.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_ONE_CALL = jaxtyping.jaxtyped("context")
"""In which a letter stands for one length."""


def install() -> None:
    """For what is imported of the package from here on."""
    jaxtyping.jaxtyped = _lean
    jaxtyping.install_import_hook("gemscope", "typecheck.checked")


@contextmanager
def unchecked() -> Iterator[None]:
    """Types as users meet them, and the speed."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _lean(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator that the import hook writes above every function and class. Shapes stand in quotes, single ones once
    the compiler has made strings of annotations.
    """

    def decorated(given: Any) -> Any:
        if inspect.isfunction(given):
            return _watched(given, typechecker)
        if dataclasses.is_dataclass(given) and inspect.isfunction(made := vars(given).get("__init__")):
            given.__init__ = _watched(made, typechecker)
        return given

    return decorated


def _watched(given: Any, typechecker: Callable[..., Any]) -> Any:
    """Arguments and what is returned, in one call of the type checker. jaxtyping makes two of it, for the words of its
    messages, and binds arguments for lengths that are computed from them, which no signature here has.
    """
    has_shapes = any("'" in str(hint) for hint in given.__annotations__.values())
    if not has_shapes and "<locals>" in given.__qualname__:
        return given
    watched: Callable[..., Any] | None = None

    def prepared() -> Callable[..., Any]:
        """Once, when it is first called: to prepare all that is imported takes longer than to import it."""
        nonlocal watched
        given.__annotations__ = {name: _hint(hint, given) for name, hint in given.__annotations__.items()}
        watched = typechecker(given)
        return watched

    @functools.wraps(given)
    def plain(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return (given if jaxtyping.config.jaxtyping_disable else watched or prepared())(*args, **options)

    @functools.wraps(given)
    def shaped(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return given(*args, **options)
        with _ONE_CALL:
            return (watched or prepared())(*args, **options)

    return shaped if has_shapes else plain


def _hint(hint: Any, given: Callable[..., Any]) -> Any:
    """What a name in a signature means; anything where that is known to type checkers alone, as jaxtyping has it."""

    def of() -> None: ...

    of.__annotations__ = {"it": hint}
    try:
        return typing.get_type_hints(of, given.__globals__, include_extras=True)["it"]
    except Exception:
        return Any
