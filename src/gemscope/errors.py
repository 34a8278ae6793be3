"""Every error that a user can cause, drawn as a tree. Each message is one line: what was given, what was
expected, what to do. Nothing here knows how the errors come about.

    GemscopeError
    ├── InputError            the text, ids or options given cannot be used        (also a ValueError)
    │   ├── EmptyText
    │   ├── TextTooLong
    │   ├── TokenOutOfRange
    │   ├── OutOfMemory       a device has no room for it                          (also a MemoryError)
    │   └── NotFinite         NaN or Inf in weights or activations
    ├── NotFound              nothing by that name                                 (also a LookupError)
    │   ├── ModelNotFound
    │   ├── SAENotFound
    │   └── SiteNotFound      no such layer or site in this model
    ├── AccessError           it exists, but cannot be reached                     (also an OSError)
    │   ├── GatedRepository
    │   ├── HubUnreachable    no network, or offline mode
    │   └── StoreUnreachable  an object store that did not answer as long as there was patience
    ├── FileError             a file is not what it should be                      (also an OSError)
    │   ├── CorruptFile
    │   ├── UnsafeFile        it would have to be unpickled
    │   └── StorageFull
    ├── Awaited               this worker's share is done, others' is not
    ├── Mismatch              two things that do not fit each other                (also a ValueError)
    └── MissingDependency     an optional package is needed                        (also an ImportError)
"""

from collections.abc import Callable

LONGEST = 1000
"""Characters of a message. What names and files put into it may be of any length, and hostile."""


class GemscopeError(Exception):
    """Base of all errors below. `str(error)` is one printable line of at most LONGEST characters."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message).replace("\n", " "), LONGEST))


def one_line(text: object, length: int) -> str:
    """Anything as part of one line: what cannot be printed is spelt out, of what is too long both ends are left."""
    whole = str(text)
    if len(whole) > length:
        end = length // 4
        whole = f"{whole[: length - end - 1]}…{whole[-end:]}"
    if whole.isprintable():
        return whole
    whole = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in whole)
    return whole if len(whole) <= length else one_line(whole, length)


class InputError(GemscopeError, ValueError):
    """The text, ids or options given cannot be used."""


class EmptyText(InputError):
    """There is nothing to read."""


class TextTooLong(InputError):
    """More tokens than the model's context holds."""


class TokenOutOfRange(InputError):
    """A token id that the model's vocabulary does not have."""


class OutOfMemory(InputError, MemoryError):
    """A device has no room for it; the message says what would fit."""


class NotFinite(InputError):
    """NaN or Inf where numbers should be."""


class NotFound(GemscopeError, LookupError):
    """Nothing by that name."""

    def __str__(self) -> str:  # LookupError's own str() would be fine, KeyError's would quote; keep it plain
        return str(self.args[0]) if self.args else ""


class ModelNotFound(NotFound):
    """No such model, neither on the Hub nor on disk."""


class SAENotFound(NotFound):
    """No such SAE; the message names the nearest real ones."""


class SiteNotFound(NotFound):
    """This model has no such layer or site."""


class AccessError(GemscopeError, OSError):
    """It exists, but cannot be reached."""


class GatedRepository(AccessError):
    """Its owner asks for an agreement and a login first."""


class HubUnreachable(AccessError):
    """No network, or offline mode, and it is not in the cache."""


class StoreUnreachable(AccessError):
    """An object store that gave no answer, or none of use, as long as there was patience."""


class FileError(GemscopeError, OSError):
    """A file is not what it should be."""


class CorruptFile(FileError):
    """Truncated, damaged, or of another format than its name says."""


class UnsafeFile(FileError):
    """Reading it would mean unpickling, which can run anything. Refused."""


class StorageFull(FileError):
    """No room left on the disk; nothing half-written stays behind."""


class Awaited(GemscopeError):
    """What this worker had to do is done, and pieces of others are still missing: no mistake of anybody's."""

    def __init__(self, message: object = "", left: Callable[[], int] = lambda: 0) -> None:
        super().__init__(message)
        self.left = left
        """How many pieces are missing by now."""


class Mismatch(GemscopeError, ValueError):
    """Two things that do not fit each other, such as an SAE and a model of another width."""


class MissingDependency(GemscopeError, ImportError):
    """An optional package is needed; the message says how to install it."""
