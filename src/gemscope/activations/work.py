"""Work on text that is cut into pieces: each is done by itself, by whichever of any number of workers, and kept in a
file that its number names. What is in it depends on the piece alone, so who did it, when and how often is the same.

    NAME.partial/pieces/00003.safetensors    a piece that is done: what came of it, and what was made of what and how

In a bucket it is NAME/pieces (see `place.py`).

Workers take no lock and never talk. Of N each does every N-th piece, as far as it is missing; who finds nothing missing
in the end puts the pieces together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from safetensors.numpy import save_file

from gemscope.activations.model import LanguageModel
from gemscope.activations.place import Place
from gemscope.activations.suited import other_format
from gemscope.checked import Count, as_read, checksum_of, declared, json_of, read_tensors
from gemscope.errors import Awaited, CorruptFile, InputError, Mismatch
from gemscope.text.corpus import Passage
from gemscope.world import World

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


@runtime_checkable
class Numbered(Protocol):
    """Text that is read as one piece."""

    @property
    def number(self) -> int: ...


P = TypeVar("P", bound=Numbered)

PIECES = "pieces"
_NAME = re.compile(r"(\d{5,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a piece's file says beside its arrays."""

    piece: Count
    read: Count
    """Tokens, padding apart."""
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]


class Work:
    """What is to become `to`, in pieces that lie in a folder beside it."""

    def __init__(
        self, to: Place | None, identity: Mapping[str, Any], *, what: str, folder: Place, own: str = ""
    ) -> None:
        """`identity` is all that the result depends on, `what` an unfinished one is called, such as "harvest"; `own`
        matches what else there may be in the `folder`. Without a `to` the pieces are all that there will be.
        """
        self.to, self.folder = to, folder
        self.what = what
        self.identity: dict[str, Any] = as_read(dict(identity))
        self.number = 0
        """Pieces, as far as the text was cut."""
        self._known: set[int] = set()
        """Pieces that were found done. They stay so."""
        self._own = re.compile(rf"{PIECES}/{_NAME.pattern}|(.*/)?\.[^/]+(/.*)?|{own}")

    def begin(self) -> None:
        """Raises Mismatch where pieces of something else are there, InputError where something else altogether is,
        CorruptFile.
        """
        with self.room():
            self._require_own()
            self.folder.begin(PIECES)
        if there := self.there():
            self.read_of(min(there))

    def _require_own(self) -> None:
        """It may be somebody's work."""
        for name in self.folder.names():
            if self._own.fullmatch(name) is None:
                raise InputError(
                    f"{self.folder}/{name} is of no unfinished {self.what}: move {self.folder}, or name another folder"
                )

    def end(self) -> None:
        """Where no piece is done, nothing stays: there is nothing to go on from."""
        if not self.there():
            self.folder.end(PIECES)

    def discard(self) -> None:
        """All pieces are in their place, or are of no use."""
        self.folder.discard()

    def there(self) -> set[int]:
        """Numbers of the pieces that are done."""
        found = (_NAME.fullmatch(name.removeprefix(f"{PIECES}/")) for name in self.folder.names(PIECES))
        self._known |= (there := {int(one[1]) for one in found if one})
        return there

    def has(self, number: int) -> bool:
        """Whether a piece is done."""
        if number not in self._known and self.folder.has(_file(number)):
            self._known.add(number)
        return number in self._known

    def mine(
        self, passages: Iterable[P], world: World, *, tokens: int | None, count: Callable[[P], int]
    ) -> Iterator[tuple[P, int | None]]:
        """Of the text those passages that this worker does, each with how many tokens of it are enough (None: all).
        Whoever asks for the next one has `put` this one. `count` tells the tokens of a passage where `tokens` end the
        work, and nobody has read it yet.
        """
        left = tokens
        for passage in passages:
            if world.does(passage.number) and not self.has(passage.number):
                if self.is_whole:  # others have put it together meanwhile
                    return
                yield passage, left
            self.number = passage.number + 1
            if left is not None:
                left -= self.read_of(passage.number) if self.has(passage.number) else count(passage)
                if left <= 0:
                    return

    def news(self, known: dict[int, int]) -> int:
        """How many tokens others have read since, in pieces that are done; `known` tells of those that were before."""
        found = {number: self.read_of(number) for number in self.there() - known.keys()}
        known.update(found)
        return sum(found.values())

    def put(self, number: int, *, read: int, facts: object, arrays: Mapping[str, Array] | None = None) -> None:
        """Keeps what came of a piece, unless that is there already. Raises StorageFull, FileError."""
        whole = {name: np.ascontiguousarray(value) for name, value in (arrays or {}).items()}
        said = as_read({"piece": number, "read": read, "identity": self.identity, "facts": facts})
        said["checksum"] = checksum_of(whole, said)
        if self.is_whole:  # others have put it together meanwhile
            return
        with self.room():
            self.folder.put_once(_file(number), lambda path: save_file(whole, path, {"piece": json.dumps(said)}))
        self._known.add(number)

    def get(self, number: int, kind: type[T]) -> tuple[T, dict[str, Array]]:
        """What was kept of a piece. Raises Mismatch where it was made of something else, CorruptFile, NotFound."""
        said, arrays = self._said(number)
        return declared(said.facts, kind, where=self._called(number)), arrays

    def all(self, kind: type[T]) -> Iterator[tuple[int, T, dict[str, Array]]]:
        """Of each piece, in the order of the text, how many tokens were read and what `get` gives."""

        def got(number: int) -> tuple[int, T, dict[str, Array]]:
            said, arrays = self._said(number)
            return said.read, declared(said.facts, kind, where=self._called(number)), arrays

        return self.folder.each(got, range(self.number))

    def read_so_far(self) -> dict[int, int]:
        """How many tokens were read of each of the pieces that are done. Raises what `get` does."""
        numbers = sorted(self.there())
        return dict(zip(numbers, self.folder.each(self.read_of, numbers), strict=True))

    def read_of(self, number: int) -> int:
        """How many tokens of a piece were read. Raises what `get` does."""
        return self._said(number)[0].read

    def _said(self, number: int) -> tuple[_Said, dict[str, Array]]:
        path = self._called(number)
        try:
            with self.folder.reading(_file(number)) as file:
                arrays, beside = read_tensors(file, framework="np")
            document = json_of(beside.get("piece", ""), dict[str, Any], where="what it says")
            sum_ = document.pop("checksum", None)
            said = declared(document, _Said, where="what it says")
            if sum_ != checksum_of(arrays, document):
                raise CorruptFile("its checksum is another")
        except CorruptFile as error:
            raise self.damaged(number, error) from error
        named = [
            other_format(said.identity.get(name), self.identity.get(name)) if name == "dtype" else name
            for name in {**self.identity, **said.identity}
            if said.identity.get(name) != self.identity.get(name)
        ]
        if said.piece != number:
            raise self.damaged(number, f"it is piece {said.piece}")
        if named:
            raise Mismatch(
                f"{path} is a piece of {_a(self.what)} that was made with another {', '.join(named)}: go on with the "
                f"same, name another folder, or remove {self.folder}"
            )
        return said, arrays

    def damaged(self, number: int, why: object) -> CorruptFile:
        """Of a piece's file."""
        return CorruptFile(f"{self._called(number)} is damaged ({why}): {self.again(number)}")

    def again(self, number: int) -> str:
        """How a piece is done once more."""
        return f"remove {self._called(number)}, and start again"

    def require_all(self) -> None:
        """Raises Awaited where pieces are missing that others do."""
        if left := self.left():
            raise Awaited(
                f"{self.number - left:,} of {self.number:,} pieces are done; others do the rest, and whoever does the "
                f"last makes {self.to} of them: start it again where none is at work any more",
                self.left,
            )

    @property
    def is_whole(self) -> bool:
        """Whether the pieces have been put together."""
        return self.to is not None and self.to.is_whole

    def left(self) -> int:
        """How many pieces are missing."""
        return 0 if self.is_whole else len(set(range(self.number)) - self.there())

    def room(self) -> AbstractContextManager[None]:
        """What the system says while it is written, in one line."""
        return self.folder.room(self.to or self.folder, self._kept)

    def _kept(self) -> str:
        done = len(self.there())
        if not done:
            return ""
        kept = "piece is" if done == 1 else "pieces are"
        return f"{done:,} {kept} kept in {self.folder}: free some room and start again"

    def _called(self, number: int) -> str:
        return f"{self.folder}/{_file(number)}"


def _file(number: int) -> str:
    return f"{PIECES}/{number:05d}.safetensors"


def counted(model: LanguageModel, passage: Passage, *, length: int) -> int:
    """How many tokens a passage has in rows of `length`, the first of each row among them."""
    lead = int(model.bos is not None)
    ids = model.ids_of(passage.documents)
    total = sum(len(one) + (model.separator is not None) for one in ids)
    return total + -(-total // (length - lead)) * lead


def device_kind(device: torch.device) -> str:
    """What computed this, in a word: on another kind of device the last digits may differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
