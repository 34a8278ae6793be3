"""What a feature's page says of lists of one's own: plain values, which go to whichever process makes the page."""

from __future__ import annotations

from dataclasses import dataclass

from gemscope.app.shelf import Source
from gemscope.atlas.notes.lists import Lists


@dataclass(frozen=True)
class KeptIn:
    """A list that a feature is in, and the note on it there."""

    id: str
    name: str
    note: str


@dataclass(frozen=True)
class Keeping:
    """The lists that a feature is in, and the names of all that it could be taken into."""

    address: str
    """`model@source:index`."""
    kept_in: tuple[KeptIn, ...]
    names: tuple[str, ...]

    @property
    def into(self) -> str:
        """The list that is proposed."""
        if self.kept_in:
            return self.kept_in[-1].name
        return self.names[0] if len(self.names) == 1 else "Bookmarks"


def keeping(lists: Lists, source: Source, index: int) -> Keeping:
    """As of now."""
    model, name = source.address
    kept_in = [KeptIn(one.id, one.name, kept.note) for one, kept in lists.having(model, name, index)]
    return Keeping(f"{model}@{name}:{index}", tuple(kept_in), tuple(one.name for one in lists))
