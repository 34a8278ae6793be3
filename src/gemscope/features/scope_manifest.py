"""What a scope of one's own says of itself: `scope.json` at its root, written last, and the names of its folders.

my-scope/scope.json
my-scope/res/layer_20/width_16k/average_l0_71/    cfg.json, sae_weights.safetensors; and, as they are made,
                                                  score.json, atlas/, README.md
my-scope/embedding/width_4k/average_l0_6/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from gemscope.activations.site import Site
from gemscope.checked import Finite, Numbered, Positive, quoted, read_json, shown
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, NotFound, SiteNotFound

NAME = "scope.json"
FORMAT = 1
SCORE, ATLAS = "score.json", "atlas"
"""What may lie beside an SAE: its figures, its atlas. Found where they are and listed nowhere."""
_REMEDY = "fetch it again, or have the scope made to its end"


@dataclass(frozen=True, kw_only=True)
class Text:
    """The corpus that a scope was made from."""

    name: str
    """What it is, in words."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class Made:
    """One SAE of a scope."""

    path: str
    """Of its folder from the scope's root, with / between names, whatever the system."""
    site: str
    site_out: str
    """Where it writes: `site`, but for transcoders."""
    width: Positive
    l0: Finite
    """Features active per token; its folder's name has it as a whole number."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What was to be in a scope and is not."""

    site: str
    reason: str
    """In one line."""
    width: Positive | None = None
    l0: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a scope is of, and which SAEs are in it."""

    format: Positive = FORMAT
    model: str
    """Hugging Face id."""
    revision: str | None
    corpus: Text
    versions: Mapping[str, str]
    """Of gemscope, torch, ..."""
    recipe: str
    """The text of the recipe."""
    saes: tuple[Made, ...]
    failed: tuple[Failed, ...] = ()


def place_of(site: Site, width: int, l0: float) -> str:
    """Where an SAE's folder lies in a scope: res/layer_20/width_16k/average_l0_71, as in Gemma Scope."""
    home = "embedding" if site.layer is None else f"{site.kind}/layer_{site.layer}"
    return f"{home}/width_{width_label(width)}/average_l0_{round(l0)}"


def width_label(width: int) -> str:
    """2k, 16k, 1m for whole multiples of 1,024 and of its square, else the number itself."""
    for size, letter in ((1 << 20, "m"), (1 << 10, "k")):
        if width % size == 0:
            return f"{width // size}{letter}"
    return str(width)


def write_scope(manifest: Manifest, folder: Path) -> None:
    """Writes `scope.json`, in place of one that was there. Raises StorageFull, FileError, AccessError."""
    with written_aside(folder / NAME) as aside:
        text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8", errors="replace")


def read_scope(folder: Path) -> Manifest:
    """Raises NotFound where there is none, CorruptFile for what is not one, names a place outside of the folder or one
    that is no site, or is of a format that is not known yet; AccessError.
    """
    path = folder / NAME
    try:
        number = read_json(path, Numbered, remedy=_REMEDY).format
        if number != FORMAT:
            raise CorruptFile(f"{shown(path)} is of format {number}, this version reads {FORMAT}: update gemscope")
        found: Manifest = read_json(path, Manifest, closed=True, remedy=_REMEDY)
    except NotFound:
        raise NotFound(f"no scope in {shown(folder)}: it has no {NAME}, which is written last") from None
    for one in found.saes:
        _require_inside(one.path, path)
        _require_site(one.site, path)
        _require_site(one.site_out, path)
    if len({one.path for one in found.saes}) < len(found.saes):
        raise CorruptFile(f"{shown(path)} names one folder for two SAEs; {_REMEDY}")
    return found


def _require_inside(path: str, where: Path) -> None:
    names = path.split("/")
    if PurePosixPath(path).is_absolute() or {"", ".", ".."} & set(names) or "\\" in path or "\0" in path:
        raise CorruptFile(f"{shown(where)} names the folder {quoted(path)}, expected one within the scope")


def _require_site(text: str, where: Path) -> None:
    try:
        Site.parse(text)
    except SiteNotFound as error:
        raise CorruptFile(f"{shown(where)}: {error}") from error
