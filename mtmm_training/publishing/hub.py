"""The upload, and what the Hub or the network refuses, in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from mtmm_training.scoring.texts import render

# What may be uploaded, and what an older version of the model may have left in the repository.
ALLOWED = Path(__file__).with_name("uploaded.txt").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Target:
    """Where a model goes.

    Args:
        repo_id: user/name or organisation/name.
        private: make a new repository private.
        branch: upload to this branch, made from main if it does not exist; None = main.
        pull_request: open a pull request instead of changing the branch.
        tag: names the uploaded commit.
        message: of the commit.
    """

    repo_id: str
    private: bool = False
    branch: str | None = None
    pull_request: bool = False
    tag: str | None = None
    message: str = "Publish an MTMM model"


def plan(target: Target, folder: Path, *, dry_run: bool) -> str:
    """What goes where: the target, and each file with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return render("plan.txt", target=target, sizes=sizes, dry_run=dry_run).rstrip()


def check_target(api: HfApi, target: Target) -> None:
    """Refuse what would go wrong after the work: a token, a public repository, a tag that is taken."""
    with hub_errors(target.repo_id):
        api.whoami()
        try:
            info = api.model_info(target.repo_id)
        except RepositoryNotFoundError:
            return
        if target.private and not info.private:
            raise ValueError(f"{target.repo_id} is public already, so `--private` would not hold.")
        if target.tag in [tag.name for tag in api.list_repo_refs(target.repo_id).tags]:
            raise ValueError(f"{target.repo_id} already has the tag {target.tag}.")


def upload(api: HfApi, target: Target, folder: Path) -> CommitInfo:
    """One commit with the staged files and without an earlier version's left-overs."""
    with hub_errors(target.repo_id):
        if not target.pull_request:
            api.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
        if target.branch:
            api.create_branch(target.repo_id, branch=target.branch, exist_ok=True)
        # Weights of an earlier version would win over the new ones: one file over shards, an
        # adapter over everything.
        commit = api.upload_folder(
            repo_id=target.repo_id, folder_path=folder, commit_message=target.message,
            revision=target.branch, create_pr=target.pull_request,
            allow_patterns=ALLOWED, delete_patterns=ALLOWED,
        )  # fmt: skip
        if target.tag:
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid)
    return commit


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """One sentence for what the Hub or the network refuses.

    Raises:
        PermissionError: The Hub does not know the token, or the token may not do this.
        ConnectionError: Any other answer of the Hub's, or none.
    """
    try:
        yield
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403, 404):
            raise PermissionError(
                f"The Hub refuses this access token for {repo_id} ({first_line(error)}); run `hf auth "
                "login` with one that may write there."
            ) from error
        # huggingface_hub lets the errors of its HTTP library through.
        if status is None and not type(error).__module__.startswith("httpx"):
            raise
        raise ConnectionError(f"{repo_id}: the Hub fails ({first_line(error)}).") from error


def first_line(error: Exception) -> str:
    """The first line that says something; the Hub's errors begin with "404 Client Error."."""
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines()]
    telling = [line for line in lines if line and "Client Error" not in line]
    return (telling or lines or [type(error).__name__])[0]
