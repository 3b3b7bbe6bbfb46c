"""The upload, and what the Hub or the network refuses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mtmm_training.publishing.publication import Publication


def _token(api: HfApi) -> str | None:
    return api.token if isinstance(api.token, str) else get_token()


def print_plan(options: Publication, folder: Path, files: Sequence[str]) -> None:
    """What goes where."""
    to = [options.repo_id, "private if new" if options.private else "public if new"]
    to.append("a pull request" if options.pull_request else f"branch {options.branch or 'main'}")
    if options.tag:
        to.append(f"tag {options.tag}")
    print(f"{'would go' if options.dry_run else 'goes'} to {', '.join(to)}:")
    sizes = {name: (folder / name).stat().st_size for name in files}
    for name, size in sizes.items():
        print(f"  {size:>14,}  {name}")
    print(f"  {sum(sizes.values()):>14,}  bytes in {len(files)} files", flush=True)


def check_target(api: HfApi, options: Publication) -> None:
    """Refuse what the Hub would refuse, before anything is computed."""
    with hub_errors(options.repo_id):
        api.whoami()
        try:
            info = api.model_info(options.repo_id)
        except RepositoryNotFoundError as error:
            if options.pull_request:
                raise ValueError(
                    f"There is no {options.repo_id} to open a pull request on; publish without "
                    "--pull_request."
                ) from error
            return
        if options.private and not info.private:
            raise ValueError(
                f"{options.repo_id} exists and is public, so `--private` would not hold; change it "
                "in the repository's settings, or choose another id."
            )
        if options.tag and options.tag in [t.name for t in api.list_repo_refs(info.id).tags]:
            raise ValueError(
                f"{options.repo_id} already has the tag {options.tag}; choose another."
            )


def upload(api: HfApi, options: Publication, folder: Path, files: Sequence[str]) -> CommitInfo:
    """One commit with the staged files and without an earlier version's left-overs."""
    from mtmm_training.publishing.stage import is_allowed

    with hub_errors(options.repo_id):
        if not options.pull_request:
            private = True if options.private else None
            api.create_repo(options.repo_id, private=private, exist_ok=True)
        if options.branch:
            api.create_branch(
                options.repo_id, branch=options.branch, revision=options.revision, exist_ok=True
            )
        # Weights of an earlier version would win over the new ones: one file over shards, an
        # adapter over everything.
        there = api.list_repo_files(options.repo_id, revision=options.branch)
        stale = [
            name
            for name in there
            if name not in files and is_allowed(name) and not name.startswith(".eval_results/")
        ]
        commit = api.create_commit(
            options.repo_id,
            [CommitOperationAdd(name, folder / name) for name in files]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=options.message,
            revision=options.branch,
            create_pr=options.pull_request,
        )
        if options.tag:
            api.create_tag(options.repo_id, tag=options.tag, revision=commit.oid)
    return commit


def load_back(api: HfApi, options: Publication, commit: CommitInfo, work: Path) -> str:
    """What to load for the check after the upload: the repository's id, or an adapter's folder.

    transformers looks for an adapter's revision in the base's repository too.
    """
    if not options.adapter:
        return options.repo_id
    with hub_errors(options.repo_id):
        return api.snapshot_download(
            options.repo_id, revision=commit.oid, local_dir=work / "downloaded"
        )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """One sentence for what the Hub or the network refuses."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            "No access token; run `hf auth login`, or set HF_TOKEN to a token with write access."
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(
            f"{repo_id}: {_first_line(error)}; check --branch and --revision."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            raise PermissionError(
                "The Hub refuses the access token; run `hf auth login` again, or set HF_TOKEN."
            ) from error
        if status in (401, 403, 404):
            raise PermissionError(
                f"The access token may not write to {repo_id}; use one with write access there."
            ) from error
        raise ConnectionError(f"{repo_id}: the Hub answers {_first_line(error)}.") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # huggingface_hub's HTTP library
            raise
        raise ConnectionError(
            f"The connection to the Hub failed ({_first_line(error)}); no commit was made. Run the "
            "same command again."
        ) from error


def _first_line(error: Exception) -> str:
    """The first line that says something; the Hub's errors begin with "404 Client Error."."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.endswith("Client Error")]
    return telling[0] if telling else type(error).__name__
