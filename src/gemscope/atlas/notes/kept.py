"""A reader's own list of features, as a value and as JSON: which features, in which order, with a note for each.

The JSON has Neuronpedia's names (its call `/api/list/new-with-features` takes it as it is) and ours beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gemscope.checked import declared, json_of
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.text.printable import readable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

FORMAT = 1
MOST = 10_000
"""Features of one list."""
NOTE = 10_000
"""Characters of a note."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Note = Annotated[str, Meta(max_length=NOTE)]
Address = tuple[str, str, int]
"""Model and source, as in the address of an atlas's pages, and the feature."""
_ADDRESS = re.compile(r"([^@:\s]+)@([^@:\s]+):([0-9]{1,9})")


class Kept(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"source": "layer", "model": "modelId"}):
    """A feature in a list, by the address of its page, so that lists go across atlases."""

    model: Name
    source: Name
    index: Annotated[int, Meta(ge=0, le=999_999_999)]
    note: Note = msgspec.field(name="description", default="")
    label: Annotated[str, Meta(max_length=2_000)] = ""
    """What it was said to stand for when it was taken into the list."""
    added: Annotated[str, Meta(max_length=40)] = ""
    """The day, as 2026-11-28."""

    @property
    def key(self) -> Address:
        """What tells it from others."""
        return self.model, self.source, self.index

    @property
    def address(self) -> str:
        """As `model@source:index`, which `read_address` takes."""
        return f"{self.model}@{self.source}:{self.index}"


class FeatureList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some features under a name, in the order that somebody gave them."""

    name: Name
    about: Note = msgspec.field(name="description", default="")
    features: Annotated[tuple[Kept, ...], Meta(max_length=MOST)] = ()
    id: str = ""
    """By which `Lists` knows it: the name of its file, and a part of its address. Not in the file itself."""

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[Kept]:
        return iter(self.features)

    def find(self, key: Address) -> Kept:
        """The entry of a feature. Raises NotFound."""
        found = next((one for one in self.features if one.key == key), None)
        if found is None:
            raise NotFound(f"no feature {key[0]}@{key[1]}:{key[2]} in the list {self.name!r}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Neuronpedia's shape, and what we know beside: `from_json` reads it."""
        said: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self, id=""))
        return {"format": FORMAT, **said, "features": said.get("features", [])}

    def to_json(self) -> str:
        """The same as text, an entry in a line or more."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table: the features, what each stands for, and the notes."""
        from rich.text import Text

        from gemscope.pages.labels import STANDS, short_label
        from gemscope.pages.tables import Table

        yield Text(f"{readable(self.name)} · {len(self):,} feature{'' if len(self) == 1 else 's'}", style="bold")
        if self.about:
            yield Text(readable(self.about))
        if not self.features:
            return
        heads = ("feature", STANDS, "note")
        rows = [(one.address, short_label(one.label or None), readable(one.note)) for one in self.features]
        yield Table(heads, rows, left=heads, wraps=heads[1:], bold=False)


def from_json(data: bytes | str, *, where: str = "the list", name: str = "") -> FeatureList:
    """A list that was exported, from here or from Neuronpedia; or its features alone, which then need a `name`.

    A feature that is named twice is taken once. Raises CorruptFile.
    """
    said = _said(json_of(data, Any, where=where))
    if isinstance(said, list):
        said = {"features": said}
    if not isinstance(said, dict):
        raise CorruptFile(f"{where} is no list of features: expected an object with a name and features")
    number = said.get("format", FORMAT)
    if number != FORMAT:
        raise CorruptFile(f"{where} is of format {number!r:.20}, this version reads {FORMAT}: update gemscope")
    # Somebody else's id is none of ours.
    given = {**said, **({"name": name} if name else {}), "id": ""}
    found = declared(given, FeatureList, where=where, strict=False)
    once: dict[Address, Kept] = {}
    for one in found.features:
        once.setdefault(one.key, one)
    return msgspec.structs.replace(found, features=tuple(once.values()))


def _said(value: Any) -> Any:
    """Without what is null: it is as good as nothing."""
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value


def read_address(text: str) -> Address:
    """Of `model@source:index`. Raises InputError."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text[:80]!r} is no feature's address: expected MODEL@SOURCE:INDEX")
    return found[1], found[2], int(found[3])
