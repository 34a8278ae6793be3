"""What an atlas is of, as its `manifest.json` says: the model, the SAE, the text that was read and how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gemscope.errors import AccessError, CorruptFile, NotFound

FORMAT = 1
"""Of the folder as a whole; `schema.py` has a step of migration for each."""
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One text that was read (a corpus, a harvest, an import), packed into rows by itself."""

    name: str
    digest: str
    rows: int
    documents: int
    counted: int
    """Tokens that figures are over."""
    masked: Mapping[str, int]
    """Tokens that are in no figure, by reason: `special`, `first`, `sink`, `padding`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an atlas is of."""

    format: int = FORMAT
    model: str
    """Hugging Face id: HuggingFaceTB/SmolLM2-135M-Instruct."""
    model_id: str
    """As in the address of a page: `smollm2-135m-instruct`."""
    source_id: str
    """As in the address of a page: `15-res-8k`."""
    revision: str | None
    sae: str
    sae_digest: str
    site: str
    site_out: str
    gate: str
    d_sae: int
    parts: tuple[Part, ...]
    length: int
    """Tokens per row of the corpus."""
    before: int
    """Tokens shown in front of an example's own."""
    after: int
    """Tokens shown behind it."""
    bos: bool
    """Whether each row opens with a BOS that no document holds."""
    logits: str | None
    """The convention of the logits, in words; None where there are none: `no_logits` says why."""
    no_logits: str | None
    coactivation: str
    """What co-activation was measured on, in words."""
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    neuronpedia_id: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens that figures are over."""
        return sum(part.counted for part in self.parts)

    @property
    def rows(self) -> int:
        """Rows of the corpus."""
        return sum(part.rows for part in self.parts)

    @property
    def documents(self) -> int:
        """Documents of the corpus."""
        return sum(part.documents for part in self.parts)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Beside its place, then into it."""
    aside = folder / f"{NAME}.new"
    aside.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / NAME)


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound where there is none, CorruptFile for what is not one or of a format that is not known yet,
    AccessError for one that cannot be read.
    """
    path = folder / NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        number = facts["format"]
        if type(number) is not int or not 1 <= number <= FORMAT:
            raise CorruptFile(f"{path} is of format {number!r}, this version reads up to {FORMAT}: update gemscope")
        _check(Manifest, facts)
        for part in facts["parts"]:
            _check(Part, part)
        if facts["length"] < 1:
            raise ValueError(f"length is {facts['length']}, below 1")
        return Manifest(**{**facts, "parts": tuple(Part(**part) for part in facts["parts"])})
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no atlas in {folder}: it has no {NAME} (describe makes one)") from None
    except CorruptFile:
        raise
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptFile(f"{path} is not an atlas's manifest: {error}") from error


_JSON: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "bool": bool,
    "str | None": (str, type(None)),
    "tuple[Part, ...]": list,
    "Mapping[str, Any]": dict,
    "Mapping[str, str]": dict,
    "Mapping[str, int]": dict,
}


def _check(kind: type[Manifest | Part], facts: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError for a file that somebody has changed by hand, or that is another program's."""
    for one in fields(kind):
        if one.name not in facts and one.default_factory is MISSING and one.default is MISSING:
            raise KeyError(f"{one.name} is missing")
        value, wanted = facts.get(one.name), _JSON[str(one.type)]
        if one.name in facts and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            raise ValueError(f"{one.name} is {value!r}, not of type {one.type}")
        if wanted is int and one.name in facts and facts[one.name] < 0:
            raise ValueError(f"{one.name} is {value}, below 0")
    if unknown := facts.keys() - {one.name for one in fields(kind)}:
        raise ValueError(f"it says {min(unknown)!r}, which is not known")
