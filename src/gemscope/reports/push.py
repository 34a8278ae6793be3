"""An SAE of one's own, given to others: a repository on the Hugging Face Hub with its weights in SAELens's format, its
card and its atlas, all of it in one commit.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemscope import __version__
from gemscope.activations import hub, uploading
from gemscope.activations.uploading import Content
from gemscope.atlas.files.schema import NAME as TABLES
from gemscope.atlas.files.whole import copy_tables, is_written
from gemscope.checked import bytes_of
from gemscope.features.files.saelens_config import CONFIG
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Table
from gemscope.reports import cards
from gemscope.reports.keeping import CARD, LARGE
from gemscope.reports.release import Release, collected, is_ours

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Pushed(Shown):
    """What went to the Hub, or would go."""

    repo: str
    revision: str
    """The branch."""
    url: str
    private: bool | None
    """None where nobody was asked."""
    commit: str | None
    """None for a dry run."""
    addresses: tuple[str, ...]
    """Of the SAEs, for `load_sae`."""
    model: str | None
    files: Mapping[str, int]
    """Path in the repository to size in bytes."""
    removed: tuple[str, ...]
    """Of what an earlier push left in the same folders: the new one does not have it."""
    left_out: tuple[str, ...]
    """Of the folder here."""
    kept: tuple[str, ...]
    """What is there already, is somebody's own, and was not replaced."""

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "url": self.url,
            "private": self.private,
            "commit": self.commit,
            "saes": list(self.addresses),
            "bytes": self.bytes,
            "files": dict(self.files),
            "removed": list(self.removed),
            "left_out": list(self.left_out),
            "kept": list(self.kept),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [(path, f"{size:,}") for path, size in self.files.items()]
        rows.append(("in all", f"{self.bytes:,}"))
        said = [
            *(f"removed: {name}" for name in self.removed),
            *(f"left as it is, being no page of ours: {name}" for name in self.kept),
        ]
        if self.left_out:
            more = len(self.left_out) - _MOST_LISTED
            names = [*self.left_out[:_MOST_LISTED], *([f"{more:,} more"] if more > 0 else [])]
            said.append(f"left out: {', '.join(names)}")
        if self.commit is None:
            said.append(f"a dry run: nothing was sent to {self.repo}")
        else:
            said.append(f"{self.url}, commit {self.commit[:12]} of {self.revision}")
        return Group(Table(("file", "bytes"), rows, left=("file",)), *map(Text, said))


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    atlas: str | os.PathLike[str] | None = None,
    place: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
    message: str | None = None,
) -> Pushed:
    """Publishes an SAE of your own on the Hub, in the repository `repo` (`USER/NAME`), which is made where it is not.

    `folder` is a training run's, or an SAE's in SAELens's format; or a scope's, all SAEs of which go to where they lie
    in it, with the list that `load_scope(repo)` reads. Of one SAE, its weights, its card and its atlas (`atlas`, else
    the folder called so in `folder`) go into one folder of the repository (`place`, else the site's name, as `15.res`),
    in one commit, where `load_sae(f"{repo}/15.res")`, `load_atlas(f"{repo}/15.res/atlas")` and SAELens's
    `SAE.from_pretrained(repo, "15.res")` find them. A second push into the same folder replaces the first; one into
    another adds to it. `revision` is a branch, made where it is not. Checkpoints, and whatever else is none of these
    files, stay here and are named in what comes back; `dry_run` says all of that and asks nobody.

    Before anything is sent all is looked at: raises NotFound, CorruptFile, NotFinite, FileError for what leads out of
    the folder, Mismatch for an atlas of another SAE, InputError; AccessError without a token, or with one that may not;
    HubUnreachable where it broke off, and then running it again goes on: what has arrived is not sent twice.
    """
    uploading.require_name(repo)
    branch = revision or "main"
    release = collected(
        Path(folder).expanduser(), repo, atlas=None if atlas is None else Path(atlas).expanduser(), place=place
    )
    if dry_run:
        files = {**release.files, CARD: release.front(())}
        return _told(release, files, branch)
    secret = uploading.token_of(token)
    there = uploading.held(repo, revision=branch, token=secret)
    if there is None or (private and not there.private):
        there = uploading.make(repo, revision=branch, token=secret, private=private)
    files = release.files
    places = {one.place for one in release.pieces}
    others = {path.removesuffix(f"/{CONFIG}") for path in there.files if path.endswith(f"/{CONFIG}")} - places
    own_page = CARD in there.files and not _has_our_page(repo, there.commit, secret)
    if not own_page:
        files[CARD] = release.front(others)
    gone = sorted(path for path in there.files - set(files) if _replaced(path, places))
    with tempfile.TemporaryDirectory(prefix="gemscope-push-") as aside:
        commit = uploading.send(
            repo,
            {path: _settled(content, Path(aside, str(number))) for number, (path, content) in enumerate(files.items())},
            upon=there,
            remove=gone,
            revision=branch,
            token=secret,
            message=message or f"{', '.join(one.site for one in release.pieces[:3])}, by gemscope {__version__}",
        )
    return _told(
        release,
        files,
        branch,
        private=there.private,
        commit=commit,
        removed=gone,
        kept=[CARD] if own_page else [],
    )


def _settled(content: Content, aside: Path) -> Content:
    """Of an atlas's tables that somebody is writing in, as they are now."""
    if not isinstance(content, Path) or content.name != TABLES or not is_written(content):
        return content
    copy_tables(content, aside)
    return aside


def _replaced(path: str, places: Iterable[str]) -> bool:
    """Whether a file there is one that an earlier push put into one of these folders."""
    return any(path.startswith(f"{place}/") and is_ours(path.removeprefix(f"{place}/")) for place in places)


def _has_our_page(repo: str, commit: str, token: str) -> bool:
    found = hub.Access(commit, token).find(repo, CARD)
    return found is not None and cards.MARK.encode() in bytes_of(found[0], most=LARGE)


def _told(
    release: Release,
    files: Mapping[str, Content],
    branch: str,
    *,
    private: bool | None = None,
    commit: str | None = None,
    removed: Iterable[str] = (),
    kept: Iterable[str] = (),
) -> Pushed:
    sizes = {path: len(one) if isinstance(one, bytes) else one.stat().st_size for path, one in sorted(files.items())}
    return Pushed(
        repo=release.repo,
        revision=branch,
        url=f"{hub.endpoint()}/{release.repo}",
        private=private,
        commit=commit,
        addresses=tuple(one.address for one in release.pieces),
        model=release.pieces[0].model,
        files=sizes,
        removed=tuple(removed),
        left_out=release.left_out,
        kept=tuple(kept),
    )
