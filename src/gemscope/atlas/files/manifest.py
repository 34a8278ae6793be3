"""What an atlas is of, as its `manifest.json` says: the model, the SAE, the text that was read and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from gemscope.checked import Count, Length, Numbered, Positive, read_json, shown
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, NotFound

FORMAT = 4
"""Of the folder as a whole; `schema.py` has a step of migration for each."""
NAME = "manifest.json"
IMPORTED = "import"
"""The option that names the format of an atlas that was made of another tool's files."""
_REMEDY = "describe makes an atlas anew"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One text that was read (a corpus, a harvest, an import), packed into rows by itself."""

    name: str
    digest: str
    rows: Count
    documents: Count
    counted: Count
    """Tokens that figures are over."""
    masked: Mapping[str, Count]
    """Tokens that are in no figure, by reason: `special`, `first`, `sink`, `padding`."""
    passed: Mapping[str, Count] = field(default_factory=dict)
    """Rows of the text's files that had no text, by reason (`text.rows.PASSED`)."""
    dtype: str | None = None
    """Number format that the model computed in; None where that is not known."""


CROWDED = 6
"""A place may be the strongest of so many features; where more have it, it is one place that speaks for all of them, as
an outlier of the site does.
"""


@dataclass(frozen=True, kw_only=True)
class Crowded:
    """A place at which more than `CROWDED` features have their maximum."""

    position: Count
    """Of the token, in the atlas's corpus."""
    features: Positive


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The effect of the site at which the SAE writes, as it was measured (`features/effect.py`)."""

    corpus: str
    corpus_digest: str
    tokens: Positive
    """That it is the mean over."""
    length: Positive
    """Tokens per row of its text: how far later positions reach."""
    dtype: str
    """Number format that the model computed in."""
    agreement: float
    """Cosine of what the two halves of the text gave."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """The map of all features (`features/map.py`)."""

    method: str
    """In words."""
    kept: Annotated[float, Meta(ge=0, le=1)]
    """Of the ten features nearest by cosine, how many are among the fifty nearest on the map."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an atlas is of."""

    format: Positive = FORMAT
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
    d_sae: Positive
    parts: tuple[Part, ...]
    length: Positive
    """Tokens per row of the corpus."""
    before: Count
    """Tokens shown in front of an example's own."""
    after: Count
    """Tokens shown behind it."""
    bos: bool
    """Whether each row opens with a BOS that no document holds."""
    logits: str | None
    """The convention of the logits, in words; None where there are none: `no_logits` says why."""
    no_logits: str | None
    effect: Measured | None = None
    """Of the site; None where there is none: `no_effect` says why."""
    no_effect: str | None = None
    map: Mapped | None = None
    """None where there is none: `no_map` says why."""
    no_map: str | None = None
    coactivation: str
    """What co-activation was measured on, in words."""
    crowded: tuple[Crowded, ...] = ()
    """The most crowded places first; at most a hundred."""
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    neuronpedia_id: str | None = None
    median_norm: Length | None = None
    """Median ‖x‖ of the counted tokens at the site that is written to; None where nobody has measured it."""

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
    """Raises StorageFull, FileError, AccessError."""
    with written_aside(folder / NAME) as aside:
        aside.write_bytes(as_json(manifest))


def as_json(manifest: Manifest) -> bytes:
    """What the file says."""
    return (json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound where there is none, CorruptFile for what is not one or of a format that is not known yet,
    AccessError for one that cannot be read.
    """
    path = folder / NAME
    try:
        number = read_json(path, Numbered, remedy=_REMEDY).format
        if not 1 <= number <= FORMAT:
            raise CorruptFile(f"{path} is of format {number}, this version reads up to {FORMAT}: update gemscope")
        return read_json(path, Manifest, closed=True, remedy=_REMEDY)
    except NotFound:
        raise NotFound(f"no atlas in {shown(folder)}: it has no {NAME} (describe makes one)") from None
