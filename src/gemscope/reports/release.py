"""What of a folder goes into a release, and where to: SAEs in SAELens's format, their cards and atlases. Looks at
everything first, so that what is missing, damaged or of something else is found before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from gemscope.activations.uploading import Content
from gemscope.atlas.files import manifest
from gemscope.atlas.files.whole import own
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.checked import bytes_of, shown
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFound
from gemscope.features.files.formats import natural
from gemscope.features.files.saelens_config import CONFIG, SCALER, WEIGHTS, WHITENING
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.features.scope_manifest import NAME as SCOPE
from gemscope.features.scope_manifest import SCORE, read_scope
from gemscope.features.scored import figures_of
from gemscope.features.several import below, some_of
from gemscope.reports import cards
from gemscope.reports.keeping import CARD, LARGE
from gemscope.reports.training import training_report

ATLAS = "atlas"
_NEEDED = (CONFIG, WEIGHTS)
_BESIDE = (SCALER, WHITENING, "sparsity.safetensors", SCORE)
_OF_RUNS = ("report.html", "log.jsonl", "figures.json")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One SAE of a release."""

    place: str
    """Its folder in the repository."""
    address: str
    """By which `load_sae` finds it there."""
    model: str | None
    site: str
    files: Mapping[str, Content]
    """By their paths in the repository, but for the card and the atlas."""
    card: str
    atlas: Path | None


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to be sent."""

    repo: str
    pieces: tuple[Piece, ...]
    also: Mapping[str, Content] = field(default_factory=dict)
    """What belongs to none of them alone."""
    page: str | None = None
    """The first page, where somebody has written one."""
    left_out: tuple[str, ...]
    """Of the folder, with the reason where it is not that nothing of the kind is published."""

    @property
    def files(self) -> dict[str, Content]:
        """Everything but the first page, by its path in the repository. An atlas names the SAE that lies beside it."""
        found: dict[str, Content] = dict(self.also)
        for one in self.pieces:
            found |= one.files
            found[f"{one.place}/{CARD}"] = cards.addressed(one.card, one.address, _OF_RUNS[0]).encode()
            if one.atlas is not None:
                found |= {f"{one.place}/{ATLAS}/{name}": one.atlas / name for name in own(_names(one.atlas))}
                said = replace(manifest.read_manifest(one.atlas), sae=one.address)
                found[f"{one.place}/{ATLAS}/{manifest.NAME}"] = manifest.as_json(said)
        return found

    def front(self, others: Iterable[str]) -> bytes:
        """The first page: the one that was written, the card where the repository holds one SAE, else a list of all,
        these and `others`.
        """
        places = sorted({*(one.place for one in self.pieces), *others}, key=natural)
        first = self.pieces[0]
        if self.page is not None:
            text = self.page
        elif len(places) == 1:
            text = cards.addressed(first.card, first.address, f"{first.place}/{_OF_RUNS[0]}")
        else:
            text = cards.front(self.repo, first.model, places)
        return f"{text}\n{cards.MARK}\n".encode()


def collected(folder: Path, repo: str, *, atlas: Path | None, place: str | None) -> Release:
    """What of a folder goes into a repository: of a run's or an SAE's into its folder `place` (default: the site's
    name), of a scope's to where it lies.

    Raises NotFound, CorruptFile, Mismatch for an atlas of another SAE, FileError for what leads out of the folder,
    InputError for an SAE without a site and for a `place` that is none.
    """
    if place is not None:
        _require_place(place)
    root = folder.resolve()
    if _lies(folder / SCOPE, root):
        if atlas is not None or place is not None:
            raise InputError(
                f"{shown(folder)} is a scope, whose SAEs have places and atlases of their own: give neither"
            )
        return _of_scope(folder, root, repo)
    home = _home(folder)
    piece, went = _piece(home, folder, root, repo, place=place, atlas=atlas)
    return Release(repo=repo, pieces=(piece,), left_out=tuple(_left_out(folder, root, went)))


def _of_scope(folder: Path, root: Path, repo: str) -> Release:
    """All of its SAEs, and what it says of itself."""
    pieces, went = [], {folder / SCOPE, folder / CARD}
    for one in read_scope(folder).saes:
        home = folder / one.path
        if not home.is_dir():
            raise NotFound(f"{shown(folder)} has no {one.path}, which its {SCOPE} names: fetch it again, or make it")
        piece, its = _piece(home, home, root, repo, place=one.path, atlas=None)
        pieces.append(piece)
        went |= its | {folder / parent for parent in PurePosixPath(one.path).parents}
    if not pieces:
        raise NotFound(f"the scope in {shown(folder)} has no SAE yet")
    page = _text(folder / CARD) if _lies(folder / CARD, root) else None
    also = {SCOPE: folder / SCOPE}
    left = tuple(_left_out(folder, root, went))
    return Release(repo=repo, pieces=tuple(pieces), also=also, page=page, left_out=left)


def _piece(
    home: Path, folder: Path, root: Path, repo: str, *, place: str | None, atlas: Path | None
) -> tuple[Piece, set[Path]]:
    """The SAE in `home`, of the run in `folder` where that is another; and which paths here go with it."""
    kept = [name for name in (*_NEEDED, *_BESIDE, CARD, ATLAS) if _lies(home / name, root)]
    if lost := [name for name in _NEEDED if name not in kept]:
        if (home / lost[0]).is_symlink():
            raise FileError(f"{home / lost[0]} leads out of {folder}: copy the file there, and push that")
        raise NotFound(f"{home} has no {lost[0]}: gs.save_sae(gs.load_sae(...), FOLDER) writes SAELens's format")
    sae = load_sae(home)
    if sae.site is None:
        raise InputError(f"{home} does not say which site it reads: load it with site=..., and save it so")
    at = place or str(sae.site)
    found: dict[str, Content] = {f"{at}/{name}": home / name for name in kept if name not in (CARD, ATLAS)}
    of_run: list[str] = []
    if home != folder:
        of_run = [name for name in (*_OF_RUNS, ATLAS) if _lies(folder / name, root)]
        found |= {f"{at}/{name}": folder / name for name in of_run if name != ATLAS}
    if atlas is None:
        atlas = home / ATLAS if ATLAS in kept else folder / ATLAS if ATLAS in of_run else None
    if atlas is not None:
        _require_atlas(atlas, sae)
    piece = Piece(
        place=at,
        address=f"{repo}/{at}",
        model=sae.info.model,
        site=str(sae.site),
        files=found,
        card=_card(home, folder, sae, CARD in kept),
        atlas=atlas,
    )
    went = {home / name for name in kept} | {folder / name for name in of_run} | {home}
    if atlas is not None:
        went |= {atlas / name for name in own(_names(atlas))} | {atlas}
    return piece, went


def is_ours(name: str) -> bool:
    """Whether a file in an SAE's folder of a repository is one that `push` puts there."""
    folder, _, file = name.rpartition("/")
    return bool(own([file])) if folder == ATLAS else not folder and file in (*_NEEDED, *_BESIDE, *_OF_RUNS, CARD)


def _require_place(place: str) -> None:
    parts = place.split("/")
    if {"", ".", ".."} & set(parts) or PurePosixPath(place).is_absolute() or "\\" in place or not place.isprintable():
        raise InputError(f"{place!r} is no folder of a repository: expected names with / between them")


def _home(folder: Path) -> Path:
    """Where the SAE lies: in the folder itself, or in that of a run. Raises NotFound."""
    if not folder.is_dir():
        raise NotFound(f"no folder {shown(folder)}: expected a run (`gemscope train`), an SAE or a scope")
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        return folder
    if (folder / "sae" / CONFIG).exists():
        return folder / "sae"
    if (folder / "log.jsonl").exists():
        raise NotFound(f"the run in {shown(folder)} has not come to its end: start it again to finish it")
    inside = [name for name in below(folder) if not name.startswith("checkpoints")]
    told = f"there are SAEs in it: {some_of(inside)}" if inside else f"expected {CONFIG} and {WEIGHTS}, or a run"
    raise NotFound(f"no SAE in {shown(folder)}: {told}")


def _lies(path: Path, root: Path) -> bool:
    """Whether it is there, and no link out of the folder."""
    return (path.is_file() or path.is_dir()) and path.resolve().is_relative_to(root)


def _require_atlas(atlas: Path, sae: SAE) -> None:
    """Raises NotFound, CorruptFile, Mismatch."""
    with closing(Atlas(atlas)) as opened:
        made = opened.manifest.sae_digest
    if made != sae.digest:
        raise Mismatch(
            f"the atlas {shown(atlas)} is of another SAE ({made[:12] or 'no digest'}) than {sae.info.name} "
            f"({sae.digest[:12]}): describe this one, or give its own with --atlas"
        )
    if problems := verify(atlas):
        raise CorruptFile(f"{shown(atlas)} is damaged: {problems[0]}; describe anew, or push without it")
    for name in own(_names(atlas)):
        if not _lies(atlas / name, atlas.resolve()):
            raise FileError(f"{atlas / name} leads out of {atlas}: copy the file there, and push that")


def _card(home: Path, folder: Path, sae: SAE, there: bool) -> str:
    if there:
        return _text(home / CARD)
    if home != folder and (folder / "figures.json").exists():
        return training_report(folder).to_card()
    return cards.plain(sae, figures_of(home / SCORE) if _lies(home / SCORE, home.resolve()) else None)


def _text(path: Path) -> str:
    return bytes_of(path, most=LARGE).decode("utf-8", "replace")


def _left_out(folder: Path, root: Path, went: set[Path]) -> Iterator[str]:
    """What of the folder does not go, folders as a whole where nothing of them does."""
    for path in sorted(folder.iterdir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            yield f"{name} (leads out of the folder)"
        elif path in went and path.is_dir():
            yield from (f"{name}/{one}" for one in _left_out(path, root, went))
        elif path not in went:
            yield f"{name}/" if path.is_dir() else name


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
