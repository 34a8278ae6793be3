"""Files to a repository of the Hugging Face Hub, all of them in one commit, in our own errors.

Knows repositories, tokens and file names; what is in the files is for whoever sends them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemscope.activations import hub
from gemscope.disk import chain
from gemscope.errors import AccessError, GemscopeError, HubUnreachable, InputError

Content = Path | bytes
"""What is sent: a file's, or these bytes."""
_AGAIN = "run it again: what has arrived is not sent twice, and nothing is to be seen there before all has"


@dataclass(frozen=True)
class Held:
    """What a branch of a repository holds."""

    commit: str
    files: frozenset[str]
    private: bool


def require_name(repo: str) -> None:
    """Raises InputError for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        known = repo.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise InputError(f"{repo!r} is no name of a repository: expected USER/NAME, in letters, digits, -, _ and .")


def token_of(token: str | bool | None) -> str:
    """The token to write with: the one given, or the one that the Hub's client finds. Raises AccessError for none."""
    from huggingface_hub import get_token

    found = token if isinstance(token, str) else None if token is False else get_token()
    if not found:
        raise AccessError(
            "no token of the Hub's to write with: make one at https://huggingface.co/settings/tokens, then log in with "
            "`hf auth login`, set HF_TOKEN, or pass token=..."
        )
    return found


def held(repo: str, *, revision: str, token: str) -> Held | None:
    """What lies there now; None where there is no such repository, or no such branch of it.

    Raises AccessError for a token that is none, HubUnreachable.
    """
    from huggingface_hub import HfApi, errors

    hub.reach()
    with _translated(repo, "read"):
        try:
            found = HfApi(token=token).model_info(repo, revision=revision)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            if isinstance(error, errors.GatedRepoError):
                raise
            return None
        names = frozenset(one.rfilename for one in found.siblings or ())
        return Held(str(found.sha), names, bool(found.private))


def make(repo: str, *, revision: str, token: str, private: bool) -> Held:
    """A new repository, or a new branch of one that is there, from its main one. Raises AccessError, HubUnreachable,
    InputError where one that is to be private is public.
    """
    from huggingface_hub import HfApi

    there = held(repo, revision="main", token=token)
    if there is not None and private and not there.private:
        raise InputError(
            f"{repo} is there already and public, --private makes new ones so: change it on its page first"
        )
    with _translated(repo, "write"):
        api = HfApi(token=token)
        if there is None:
            api.create_repo(repo, private=private, repo_type="model")
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
    made = held(repo, revision=revision, token=token)
    if made is None:
        raise HubUnreachable(f"{repo} was made and is not there: {_AGAIN}")
    return made


def send(
    repo: str,
    files: Mapping[str, Content],
    *,
    upon: Held,
    remove: Collection[str] = (),
    revision: str,
    token: str,
    message: str,
) -> str:
    """One commit upon another: these files by their paths there, and without those to `remove`. Returns the commit.

    Raises AccessError where this token may not write there, where somebody else has changed the branch meanwhile and
    where the repository ignores some of the files; HubUnreachable for all that may go well another time.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()),
        *(CommitOperationDelete(path_in_repo=path) for path in remove),
    ]
    with _translated(repo, "write"):
        done: Any = HfApi(token=token).create_commit(
            repo, operations, commit_message=message, revision=revision, parent_commit=upon.commit
        )
    there = held(repo, revision=done.oid, token=token)
    if there is not None and (lost := sorted(set(files) - there.files)):
        raise AccessError(
            f"{repo} has not taken {lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''}: its .gitignore names it"
        )
    return str(done.oid)


@contextmanager
def _translated(repo: str, what: str) -> Iterator[None]:
    """The Hub's refusals, and what breaks on the way there, in one line. Tokens stand in none of them."""
    from huggingface_hub import errors

    try:
        yield
    except GemscopeError:
        raise
    except Exception as error:
        endpoint = hub.endpoint()
        refused = next((one for one in chain(error) if isinstance(one, errors.HfHubHTTPError)), None)
        status = None if refused is None else getattr(refused.response, "status_code", None)
        if status == 401:
            raise AccessError(
                f"{endpoint} does not know this token (HTTP 401): make one at {endpoint}/settings/tokens, then log in "
                "with `hf auth login`"
            ) from error
        if status == 403 or isinstance(refused, errors.GatedRepoError):
            raise AccessError(
                f"this token may not {what} {repo} (HTTP 403): it takes one of its owner's with the right to {what}, "
                f"from {endpoint}/settings/tokens"
            ) from error
        if status in {409, 412}:
            raise AccessError(f"{repo} was changed by somebody else meanwhile (HTTP {status}): run it again") from error
        if refused is not None:
            said = getattr(refused, "server_message", None) or "it gives no reason"
            raise HubUnreachable(f"{endpoint} answered HTTP {status} for {repo} ({said}): {_AGAIN}") from error
        if isinstance(error, ValueError) and type(error).__module__ == "builtins":  # of the card, before all else
            raise InputError(f"{repo} would not take it: {error}") from error
        if any(
            isinstance(one, OSError) or type(one).__module__.partition(".")[0] in hub.CLIENTS for one in chain(error)
        ):
            reason = type(list(chain(error))[-1]).__name__
            raise HubUnreachable(f"sending to {endpoint}/{repo} broke off ({reason}): {_AGAIN}") from error
        raise
