"""Text that can be read again, and how it is narrowed. Where documents come from, `sources.py` knows; their tokens are
`tokens.py`'s.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any

from gemscope.errors import EmptyText, InputError, MissingDependency, NotFound
from gemscope.text.files import files_at, title
from gemscope.text.rows import Passed, passed_over, surrogate
from gemscope.text.sources import Dataset, Document, Files, Source, Texts, sha

PIECE = 1 << 19
"""Bytes of text, at least, that are read as one piece where nobody says how many: some 120,000 tokens."""


@dataclass(frozen=True)
class Passage:
    """A run of whole documents of a corpus: what is read, kept and lost in one piece."""

    number: int
    """Of the passage in its corpus, from 0."""
    first: int
    """How many documents are in front of it."""
    documents: Sequence[Document]
    bytes: int
    """Of their text in UTF-8."""
    passed: Passed
    """Rows that were passed over up to the next passage, by reason."""


class Corpus:
    """Documents that can be read again: each `for document in corpus` starts afresh and holds one document at a time.

    Made by `read`, `dataset`, `sample` and `of`; narrowed by `take`, `skip`, `where`, `only` and `split`, each of
    which returns a new corpus and reads nothing. Rows without a text (`rows.PASSED`) are passed over. Iterating raises
    EmptyText where there is nothing to read, CorruptFile where a file is damaged, InputError where the field asked for
    is not there or holds no text.
    """

    def __init__(self, source: Source, steps: tuple[tuple[str, Step], ...] = ()) -> None:
        self._source = source
        self._steps = steps

    @classmethod
    def read(cls, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, field: str = "text") -> Corpus:
        """The documents of a file, a folder (with the folders in it), a glob such as `pile/*.jsonl.gz`, or several.

        One .txt file is one document. Rows of .jsonl (or .json, one object a line) and .parquet give their text in
        `field`, and may name their `source` and `license`. Files are read in the order given, those of a folder or a
        glob by name. Raises NotFound for a path that is not there, InputError for a suffix not in `SUFFIXES`,
        EmptyText for a folder without such files.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not given:
            raise EmptyText("no files given: Corpus.read wants a path, a glob or a list of them")
        files = tuple(file for path in given for file in files_at(path))
        return cls(Files(title(given, files), files, field))

    @classmethod
    def dataset(
        cls,
        repo: str,
        /,
        *,
        split: str | None = "train",
        field: str = "text",
        revision: str | None = None,
        token: str | bool | None = None,
        streaming: bool = True,
        **kwargs: Any,
    ) -> Corpus:
        """A Hugging Face dataset, streamed: rows arrive as they are read. `streaming=False` downloads it first, into
        the cache of the datasets package. `kwargs` go to `datasets.load_dataset`: `name` is the configuration.

        The digest knows a dataset by what was asked for; give `revision` where it should also say which commit.
        Raises MissingDependency without the datasets package, InputError for split=None (all of them, which
        are no rows). Iterating raises NotFound, GatedRepository or HubUnreachable where the dataset cannot be had.
        """
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                f'dataset {repo!r} needs the datasets package: pip install "gemscope[datasets]"'
            ) from error
        if split is None:
            raise InputError("split=None: the name of one split is wanted, such as 'train' or 'train[:1%]'")
        if "path" in kwargs:
            raise InputError(
                f"path={kwargs['path']!r} beside the dataset {repo!r}: name it once, as the first argument"
            )
        return cls(Dataset(repo, split, field, revision, token, streaming, kwargs))

    @classmethod
    def sample(cls) -> Corpus:
        """The bundled sample: 2.5 MB of public-domain and permissive English (its SOURCES.md lies beside it)."""
        path = Path(str(importlib.resources.files("gemscope"))) / "data" / "sample" / "corpus.jsonl.gz"
        if not path.is_file():
            raise NotFound(f"the bundled sample {path.name} is missing from this installation: install gemscope again")
        return cls(Files("sample", (path,), "text"))

    @classmethod
    def of(cls, texts: str | Iterable[str]) -> Corpus:
        """Texts at hand, kept in memory, one document each. Raises EmptyText for none, InputError for other things."""
        held = (texts,) if isinstance(texts, str) else tuple(texts)
        for number, text in enumerate(held):
            if not isinstance(text, str):
                raise InputError(f"text {number} is of type {type(text).__name__}: Corpus.of wants strings")
            if flaw := surrogate(text):
                raise InputError(f"text {number} holds {flaw}")
        if not any(text.strip() for text in held):
            raise EmptyText("there is no text here: Corpus.of wants at least one text that is not blank")
        return cls(Texts(held))

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def documents(self, passed: Passed | None = None) -> Iterator[Document]:
        """What iterating gives; `passed` counts, as the text is read, the rows that were passed over, by reason."""
        passed = Counter() if passed is None else passed
        documents = self._source.documents(passed)
        for _, step in self._steps:
            documents = step(documents)
        found = False
        for document in documents:
            found = True
            yield document
        if not found:
            told = f" ({passed_over(passed)})" if passed.total() else ""
            raise EmptyText(f"no documents in {self.name}: there is nothing to read{told}")

    def pieces(self, size: int = PIECE) -> Iterator[Passage]:
        """The corpus in runs of whole documents, each as many as have `size` bytes of text or a little more; the last
        may have less. Text alone decides, so they are the same for whoever cuts. One is in memory at a time, and the
        text is read to one document beyond it. Raises InputError for fewer than one byte, and what iterating does.
        """
        if size < 1:
            raise InputError(f"piece={size}: expected bytes of text, such as {PIECE}")
        return self._pieces(size)

    def _pieces(self, size: int) -> Iterator[Passage]:
        passed: Passed = Counter()
        held: list[Document] = []
        number = first = bytes_ = 0
        before: Passed = Counter()
        for document in self.documents(passed):
            if bytes_ >= size:
                yield Passage(number, first, held, bytes_, passed - before)
                number, first, before = number + 1, first + len(held), Counter(passed)
                held, bytes_ = [], 0
            held.append(document)
            bytes_ += len(document.text.encode())
        yield Passage(number, first, held, bytes_, passed - before)

    def take(self, n: int) -> Corpus:
        """The first `n` documents; reads no further than the last of them."""
        if n < 1:
            raise InputError(f"take({n}): the number of documents must be 1 or more")
        return self._then(f"take({n})", partial(_slice, start=0, stop=n))

    def skip(self, n: int) -> Corpus:
        """All but the first `n` documents."""
        if n < 0:
            raise InputError(f"skip({n}): the number of documents must be 0 or more")
        return self._then(f"skip({n})", partial(_slice, start=n, stop=None))

    def where(self, predicate: Callable[[Document], bool], *, name: str | None = None) -> Corpus:
        """The documents for which `predicate(document)` is true.

        The digest knows a predicate by `name`; without one by its code, which another Python may compile differently.
        """
        label = name or getattr(predicate, "__qualname__", type(predicate).__name__)
        mark = "" if name else f" {_code_mark(predicate)}"
        return self._then(f"where({label}{mark})", partial(_filter, predicate=predicate))

    def only(self, sources: str | Iterable[str]) -> Corpus:
        """The documents of the sources named. Iterating raises EmptyText, naming the sources met, if there are none."""
        names = frozenset([sources] if isinstance(sources, str) else sources)
        if not names:
            raise InputError("only([]): name at least one source to keep")
        return self._then(f"only({', '.join(sorted(names))})", partial(_only, names=names))

    def split(self, held_out: float = 0.02, seed: int = 0) -> tuple[Corpus, Corpus]:
        """(train, held out): about `held_out` of the documents set aside, chosen by a hash of each text and `seed`.

        The same text always falls on the same side, wherever and however often it stands in the corpus.
        """
        if not 0 < held_out < 1:
            raise InputError(f"held_out={held_out}: a share of the documents between 0 and 1 is wanted, such as 0.02")
        label = f"split({held_out}, seed={seed})"
        # a split of a split must draw anew: by the same draw, all that is left would fall on one side
        earlier = sum(step.startswith("split(") for step, _ in self._steps)
        side = partial(_side, held_out=held_out, salt=f"{seed}:{earlier}".encode())
        return (
            self._then(f"{label}.train", partial(side, wanted=False)),
            self._then(f"{label}.held_out", partial(side, wanted=True)),
        )

    @property
    def name(self) -> str:
        """Where the text is from and how it was narrowed, for people: `sample.take(200)`."""
        return ".".join([self._source.name, *(label for label, _ in self._steps)])

    @property
    def streamed(self) -> bool:
        """Whether reading it means downloading it."""
        return isinstance(self._source, Dataset)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex that tells this corpus from others in a manifest, wherever its files lie.

        Files up to 2 MiB count in full (one such file of field `text` has its own SHA-256), longer ones by their size
        and the 64 KiB at either end, so that it stays cheap.
        """
        return sha(self._source.digest, *(label for label, _ in self._steps)) if self._steps else self._source.digest

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"

    def _then(self, label: str, step: Step) -> Corpus:
        return Corpus(self._source, (*self._steps, (label, step)))


Step = Callable[[Iterator[Document]], Iterator[Document]]
"""One narrowing: documents in, some of them out."""


def _slice(documents: Iterator[Document], *, start: int, stop: int | None) -> Iterator[Document]:
    return islice(documents, start, stop)


def _filter(documents: Iterator[Document], *, predicate: Callable[[Document], bool]) -> Iterator[Document]:
    return filter(predicate, documents)


def _only(documents: Iterator[Document], *, names: Collection[str]) -> Iterator[Document]:
    met: set[str] = set()
    for document in documents:
        met.add(document.source)
        if document.source in names:
            yield document
    if not met & set(names):
        there = ", ".join(repr(source) for source in sorted(met)[:20]) or "none"
        raise EmptyText(f"no document from {' or '.join(map(repr, sorted(names)))}: the sources here are {there}")


def _side(documents: Iterator[Document], *, held_out: float, salt: bytes, wanted: bool) -> Iterator[Document]:
    for document in documents:
        hashed = hashlib.blake2b(document.text.encode(), digest_size=8, key=salt).digest()
        if (int.from_bytes(hashed, "little") < held_out * 2**64) is wanted:
            yield document


def _code_mark(predicate: Callable[..., object]) -> str:
    """A short hash of what a function does: its code, constants, names, and the values that it closes over."""
    function = getattr(predicate, "__func__", predicate)
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return sha(repr(predicate))[:8]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return sha(*_code_parts(code), repr(cells), repr(getattr(function, "__defaults__", None)))[:8]


def _code_parts(code: CodeType) -> list[str]:
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts += _code_parts(constant)
        else:  # a frozenset has another order in each process
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
    return parts
