"""Folders on the Hugging Face hub, through its own client; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from multivae_core.errors import FileFormatError

__all__ = ["download", "upload"]


def download(repo: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return a local folder with these files of a repository, out of the client's cache.

    Args:
        repo: ``"user/repo"``.
        files: Names of the files; nothing else is fetched.
        revision: Branch, tag or commit.

    Raises:
        FileFormatError: There is no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _errors(repo):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Upload a folder to a repository, which is created if needed.

    Args:
        folder: The folder.
        repo: ``"user/repo"``.
        private: Whether a repository that is created can be seen by its owner alone.
        revision: Branch to upload to.
        message: Message of the commit.
        token: Access token; None: the one of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        FileFormatError: The repository cannot be written or reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        )
    return str(commit.commit_url)


@contextmanager
def _errors(repo: str) -> Iterator[None]:
    """Turn failures of the client into one kind of error with a remedy."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise FileFormatError(
            f"{repo!r} cannot be the name of a repository of the hub; write 'user/repo'"
        ) from error
    except Exception as error:  # the client's HTTP library, and so its errors, have changed before
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileFormatError(
            f"the repository {repo!r} of the hub cannot be used ({first}): check its name and"
            " revision, the connection, and for private ones `hf auth login`"
        ) from error
