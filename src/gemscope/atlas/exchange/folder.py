"""What folders of other tools are called, and which features go into them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemscope.errors import InputError, NotFound

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def slug(name: str) -> str:
    """The name, when it can name a folder and a part of an address anywhere. Raises InputError."""
    if _SLUG.fullmatch(name) is None:
        raise InputError(f"{name[:80]!r} cannot name a folder: expected letters, digits and . _ - alone")
    return name


def slugged(name: str) -> str:
    """A name that can name a folder, as close to this one as may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:200].lower() or "unnamed"


def chosen(features: Iterable[int] | None, size: int) -> list[int] | range:
    """The features asked for, ascending and each once; all for None. Raises NotFound, InputError."""
    if features is None:
        return range(size)
    wanted = sorted({int(feature) for feature in features})
    if not wanted:
        raise InputError("no features given: name some, or leave them out for all")
    for feature in wanted:
        if not 0 <= feature < size:
            raise NotFound(f"no feature {feature}: this SAE has features 0 to {size - 1}")
    return wanted
