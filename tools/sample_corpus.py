"""Draws the bundled sample corpus from the training corpus that tools/corpus.py writes: the mix, the choice, the bytes.

    python tools/sample_corpus.py english-permissive.jsonl.gz -o src/gemscope/data/sample

Writes corpus.jsonl.gz and SOURCES.md. The same corpus gives the same bytes. The NOTICE beside them is written by hand.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

SHORTEST, LONGEST = 600, 6000  # characters of a document
LETTERS = 0.72  # share of letters and blanks below which a text is a table, a dump or all code

CRUDE = re.compile(
    r"\b(nigg|negro|kike|darky|chinam[ae]n|fag\b|fagg?ot|cunt|fuck|shit|slut|whore|rapes?\b|rapist)", re.I
)
"""Slurs and crude words: a document with one is left out of a sample that everybody gets."""

CREATIVE_COMMONS = re.compile(r"microcontroller|embedded|peripheral|OpenOCD|Cortex-M|\bHALs?\b|\bSVD\b", re.I)
"""Marks of The Embedded Rust Book, whose prose is CC-BY-SA-4.0, unlike the other books that come with Rust."""


@dataclass(frozen=True)
class Share:
    """What one source gives to the sample."""

    source: str
    title: str
    license: str
    megabytes: float
    pieces: int = 1
    """How many pieces one long document may give; the first ones are taken."""
    unfit: re.Pattern[str] = CRUDE


MIX = [
    Share("python-docs", "documentation of Python", "PSF-2.0 (code examples also 0BSD)", 0.61),
    Share("austen", "six novels by Jane Austen", "public domain", 0.50),
    Share("sqlite-docs", "documentation of SQLite", "public domain", 0.40),
    Share("jargon", "the Jargon File 4.4.7", "public domain", 0.30),
    Share("wordnet", "definitions and examples from WordNet 3.0", "WordNet-3.0", 0.25),
    Share(
        "rust-book",
        "The Rust Programming Language and other books that come with Rust",
        "MIT OR Apache-2.0",
        0.15,
        unfit=CREATIVE_COMMONS,
    ),
    Share("apache-docs", "documentation of the Apache HTTP Server", "Apache-2.0", 0.11),
    Share("postgresql-docs", "documentation of PostgreSQL", "PostgreSQL", 0.10),
    Share("devils-dictionary", "The Devil's Dictionary by Ambrose Bierce", "public domain", 0.08),
    Share("us-founding", "Declaration of Independence and Constitution of the USA", "public domain", 0.04, pieces=8),
]


def draw(texts: list[str], share: Share) -> list[str]:
    """Pieces of `texts` up to the share's size, in an order that depends on each text alone."""
    fit = {
        piece: None
        for text in texts
        if len(text) >= SHORTEST and not share.unfit.search(text)
        for piece in pieces(text)[: share.pieces]
        if len(piece) >= SHORTEST and readable(piece)
    }
    drawn, room = [], share.megabytes * 1e6
    for piece in sorted(fit, key=partial(rank, use=b"choice")):
        room -= len(piece.encode())
        if room < 0:
            break
        drawn.append(piece)
    return drawn


def pieces(text: str) -> list[str]:
    """The text cut between paragraphs into pieces of at most LONGEST characters; longer paragraphs are passed over."""
    cut: list[str] = []
    size = LONGEST + 1
    for paragraph in text.strip().split("\n\n"):
        if len(paragraph) > LONGEST:
            size = LONGEST + 1
            continue
        if size + 2 + len(paragraph) > LONGEST:
            cut.append(paragraph)
            size = len(paragraph)
        else:
            cut[-1] += "\n\n" + paragraph
            size += 2 + len(paragraph)
    return cut


def readable(text: str) -> bool:
    return sum(letter.isalpha() or letter == " " for letter in text) >= LETTERS * len(text)


def rank(text: str, use: bytes) -> str:
    """A place in an order as good as random, which depends on the text and on what it is for."""
    return hashlib.blake2b(text.encode(), key=use).hexdigest()


def read(path: Path) -> dict[str, list[str]]:
    """Texts by source."""
    texts: dict[str, list[str]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts[row["source"]].append(row["text"])
    return texts


def rows(mix: list[tuple[Share, list[str]]]) -> Iterator[str]:
    """One JSON object a line, the sources well mixed."""
    drawn = [(text, share) for share, texts in mix for text in texts]
    for text, share in sorted(drawn, key=lambda row: rank(row[0], use=b"order")):
        yield json.dumps({"text": text, "source": share.source, "license": share.license}, ensure_ascii=False) + "\n"


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def packed(lines: Iterator[str]) -> bytes:
    """Gzip whose bytes depend on the text alone: no time, no file name."""
    held = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=held, mode="wb", compresslevel=9, mtime=0) as stream:
        stream.write("".join(lines).encode())
    return held.getvalue()


def sources_page(mix: list[tuple[Share, list[str]]], data: bytes, drawn_from: str) -> str:
    table = "\n".join(
        f"| {share.source} | {share.title} | {share.license} | {len(drawn)} "
        f"| {sum(len(text.encode()) for text in drawn) / 1e6:.2f} |"
        for share, drawn in mix
    )
    documents = sum(len(drawn) for _, drawn in mix)
    size = sum(len(text.encode()) for _, drawn in mix for text in drawn) / 1e6
    return f"""# The bundled sample corpus

`corpus.jsonl.gz` holds {documents} documents, {size:.2f} MB of text ({len(data) / 1e6:.2f} MB packed), one JSON object
a line with `text`, `source` and `license`, the sources mixed. SHA-256:
`{hashlib.sha256(data).hexdigest()}`

| source | what it is | licence | documents | MB |
| --- | --- | --- | --- | --- |
{table}

Each document is a whole page, or its beginning, cut between paragraphs at {LONGEST} characters. Changes made to the
originals: markup, navigation, headings and repeated paragraphs were taken out, and what is here is an excerpt. Pages
with slurs or crude words were passed over. The licences and notices are in `NOTICE`.

It is one-sided: over half is documentation of software, the rest is old fiction, satire and definitions. It has no
news, no encyclopedia and no conversation of today.

Drawn by `tools/sample_corpus.py` from a corpus of Debian's documentation packages such as `make corpus` builds
(SHA-256 `{drawn_from}`).
"""


def write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="what tools/corpus.py wrote")
    parser.add_argument(
        "-o", "--to", type=Path, required=True, help="folder to write corpus.jsonl.gz and SOURCES.md into"
    )
    options = parser.parse_args()
    texts = read(options.corpus)
    if missing := [share.source for share in MIX if share.source not in texts]:
        sys.exit(f"{options.corpus} lacks {', '.join(missing)}: it holds {', '.join(texts)}")
    mix = [(share, draw(texts[share.source], share)) for share in MIX]
    data = packed(rows(mix))
    options.to.mkdir(parents=True, exist_ok=True)
    write(options.to / "corpus.jsonl.gz", data)
    write(options.to / "SOURCES.md", sources_page(mix, data, sha256(options.corpus)).encode())
    print(f"{options.to / 'corpus.jsonl.gz'}: {sum(len(drawn) for _, drawn in mix)} documents, {len(data)} bytes")


if __name__ == "__main__":
    main()
