"""Files from the Hugging Face Hub: one at a time, from the cache where they lie there already, in our own errors.

Knows repositories and file names; what is in the files is the other readers' work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemscope.disk import is_full
from gemscope.errors import GatedRepository, GemscopeError, HubUnreachable, SAENotFound, StorageFull

_COMMIT = re.compile(r"[0-9a-f]{40}")
CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})
"""Libraries by which one version or another of the Hub's client talks, and whose errors it lets through."""
_PROBE_SECONDS = 5.0
"""How long to wait for the Hub's first sign of life. The Hub's own client tries five times, 23 seconds in all."""


@dataclass(frozen=True)
class Access:
    """How repositories are read: at which revision (a branch, a tag, a commit; None: the main one), with whose token,
    through which cache, or offline: from the cache alone (None: as HF_HUB_OFFLINE says). Tokens and caches are
    huggingface_hub's.

    What is asked of it raises SAENotFound for a repository or revision that does not exist, GatedRepository,
    HubUnreachable (no network, offline mode, or the Hub answers with an error of its own), StorageFull.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    offline: bool | None = None

    @property
    def is_offline(self) -> bool:
        """Whether nobody may be asked."""
        return is_offline(self.offline)

    def find(self, repo: str, path: str) -> tuple[Path, str] | None:
        """A file of a repository: where it lies on this disk, and the commit that it is of; None where the repository
        is there and the file is not.

        Looked for in the Hub's cache first, with no word to the network; downloaded when it is not there.
        """
        import huggingface_hub
        from huggingface_hub import errors

        revision, cache_dir = self.revision, self.cache_dir
        with _translated(repo, revision):
            cached = huggingface_hub.try_to_load_from_cache(repo, path, cache_dir=cache_dir, revision=revision)
        if isinstance(cached, str):
            return Path(cached), _commit(Path(cached))
        if cached is not None and _COMMIT.fullmatch(revision or ""):
            return None  # looked for before and not there, and a commit does not change
        if self.is_offline:
            raise self.missing(f"{repo}/{path}", "go online once")
        reach()
        with _translated(repo, revision):
            try:
                local = huggingface_hub.hf_hub_download(
                    repo, path, revision=revision, token=self.token, cache_dir=cache_dir
                )
            except (
                errors.LocalEntryNotFoundError
            ):  # the network went away; an EntryNotFoundError too, so it comes first
                raise
            except errors.EntryNotFoundError:
                return None
        return Path(local), _commit(Path(local))

    def files(self, repo: str) -> list[str]:
        """Every file of a repository, whatever lies in the cache."""
        import huggingface_hub

        reach()
        with _translated(repo, self.revision):
            return list(huggingface_hub.HfApi(token=self.token).list_repo_files(repo, revision=self.revision))

    def folder(self, repo: str, folder: str) -> list[str] | None:
        """The names of the files in a folder of a repository ("" is the repository's own), whatever lies in the cache;
        None where there is no such folder.
        """
        import huggingface_hub
        from huggingface_hub import errors

        reach()
        with _translated(repo, self.revision):
            try:
                client = huggingface_hub.HfApi(token=self.token)
                tree = client.list_repo_tree(repo, folder or None, revision=self.revision)
                files = [one.path for one in tree if isinstance(one, huggingface_hub.hf_api.RepoFile)]
            except errors.EntryNotFoundError:
                return None
        return [path.rsplit("/", 1)[-1] for path in files]

    def cached(self, repo: str, folder: str) -> list[str] | None:
        """Those of them that lie in the cache, with no word to the network; None where none does."""
        from huggingface_hub import constants

        home = Path(self.cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
        with _translated(repo, self.revision):
            named = home / "refs" / (self.revision or "main")
            commit = named.read_text().strip() if named.is_file() else self.revision
            place = home / "snapshots" / (commit or "") / folder
            if not commit or not place.is_dir():
                return None
            return [path.name for path in place.iterdir() if path.is_file()]

    def names(self, repo: str, folder: str) -> list[str]:
        """The names of the files in a folder: of the cache alone where nobody may be asked."""
        if not self.is_offline:
            return self.folder(repo, folder) or []
        if (found := self.cached(repo, folder)) is None:
            raise self.missing("/".join(filter(None, (repo, folder))))
        return found

    def missing(self, what: str, remedy: str = "go online") -> HubUnreachable:
        """What offline mode stands in the way of."""
        return HubUnreachable(f"{what} is not in the cache, and offline mode is on: {remedy} to fetch it")


def is_offline(offline: bool | None = None) -> bool:
    """What was asked for, or else what HF_HUB_OFFLINE says."""
    if offline is not None:
        return offline
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def reach() -> None:
    """Returns when the Hub answers, whatever it says. Raises HubUnreachable, after a few seconds at most."""
    if is_offline():
        raise HubUnreachable("offline mode is on (HF_HUB_OFFLINE)")
    _reach(endpoint())


@cache  # only an answer is remembered, not a failure
def _reach(address: str) -> None:
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=_PROBE_SECONDS)
    except (
        Exception
    ) as error:  # the client's own library changes between versions of huggingface_hub, and its errors with it
        raise HubUnreachable(
            f"{address} cannot be reached ({type(error).__name__}): check the network, or use a local folder"
        ) from error


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _commit(cached: Path) -> str:
    """The Hub's cache holds files at .../snapshots/COMMIT/path."""
    parts = cached.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1]


@contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    page = f"{endpoint()}/{repo}"
    try:
        yield
    except GemscopeError:
        raise
    except errors.GatedRepoError as error:  # a RepositoryNotFoundError too, so it comes first
        raise GatedRepository(
            f"{repo} is gated: accept its terms at {page}, then log in with `hf auth login` or pass token=..."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SAENotFound(
            f"no repository {repo} on the Hub, or it is private: check the name, or pass token=..."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SAENotFound(f"no revision {revision!r} of {repo}: see {page}/commits/main") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubUnreachable(
            f"{repo} is not in the cache, and {endpoint()} cannot be reached: check the network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in {401, 403}:
            raise GatedRepository(f"{repo} may not be read with this token (HTTP {status}): see {page}") from error
        raise HubUnreachable(f"{endpoint()} answered HTTP {status} for {repo}: try again later") from error
    except errors.HFValidationError as error:
        raise SAENotFound(f"{repo!r} is not a name of a repository: expected owner/name") from error
    except OSError as error:
        _require_room(error, repo)
        raise HubUnreachable(f"reading {repo} from {endpoint()} failed: {_one_line(error)}") from error
    except Exception as error:
        _require_room(error, repo)
        if type(error).__module__.partition(".")[0] in CLIENTS:
            raise HubUnreachable(f"reading {repo} from {endpoint()} failed: {_one_line(error)}") from error
        raise


def _require_room(error: Exception, repo: str) -> None:
    """Raises StorageFull where that is why a download failed."""
    if is_full(error):
        raise StorageFull(f"no room left on the disk for a file of {repo}: free some, or pass cache_dir=...") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
