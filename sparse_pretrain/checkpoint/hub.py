"""Publish a model folder on the hub: private unless asked, in one commit, over nothing that is not ours.

The token comes from the environment (`HF_TOKEN`, or the file that `hf auth login` wrote) and goes nowhere but into the
requests: it is no argument, and is taken out of every message.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from rich.console import Console

from sparse_pretrain import __version__
from sparse_pretrain.checkpoint.card import TAG, UNKNOWN_LICENSE
from sparse_pretrain.checkpoint.folder import SPARSITY_FILE, WEIGHT_FILES, one_line
from sparse_pretrain.checkpoint.layout import resolve_checkpoint
from sparse_pretrain.checkpoint.release import RELEASE, release
from sparse_pretrain.checkpoint.staged import check_target
from sparse_pretrain.checkpoint.store import read_checkpoint
from sparse_pretrain.checkpoint.upload import CARD, Upload, describe, plan_upload
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.pruning.masks import MASK_FILE

# The hub puts the first into every repository; the second comes with one that was made on its site.
NOT_CONTENT = {".gitattributes", CARD}
# What an older model may leave behind that would be loaded with the new one's weights.
MISLEADING = {*WEIGHT_FILES, MASK_FILE, SPARSITY_FILE}


@dataclass(frozen=True)
class PushSettings:
    """Where to, and how.

    Attributes:
        repo: `owner/name` on the hub.
        public: everybody may see it.
        replace: commit over an earlier model of ours; the repository's history keeps it.
        license_id: the hub's identifier of the weights' license; None: as the card has it, or unknown.
    """

    repo: str
    public: bool = False
    replace: bool = False
    license_id: str | None = None


@dataclass(frozen=True)
class Remote:
    """A repository as it was found.

    Attributes:
        commit: its newest; None: there is no repository yet.
        files: names of what it holds.
    """

    commit: str | None
    files: set[str]


def publish(
    source: Path,
    out: Path | None,
    settings: PushSettings,
    console: Console,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Release a checkpoint and push it, or push a model folder as it is.

    Token, name and repository are checked before anything is written.

    Args:
        source: a checkpoint or run folder; without `out` a folder that holds a model.
        out: the folder to release to; None: `source` is pushed.
        settings: where to, and how.
        console: told what was done.
        overwrite: replace an earlier release at `out`.
        dry_run: print what would be sent; needs no token, uses no network and leaves nothing at `out`.

    Raises:
        UserError: no token, a wrong name, a repository that is not ours to write over, no network, no model.
        FailedError: the folder does not pass its verification, or the hub has a fault.
    """
    check_name(settings.repo)
    if dry_run:
        try_out(source, out, settings, console, overwrite)
        return
    api = connect(settings.repo)
    remote = find_repository(api, settings)
    folder = source if out is None else released(source, out, settings, console, overwrite)
    upload = plan_upload(folder, settings.repo, not settings.public, settings.license_id)
    url = push(api, upload, remote)
    visibility = "private" if upload.private else "public"
    console.print(
        f"pushed {len(upload.files)} files to {url} ({visibility})", soft_wrap=True, highlight=False
    )


def try_out(
    source: Path, out: Path | None, settings: PushSettings, console: Console, overwrite: bool
) -> None:
    """Print what `publish` would send."""
    if out is None:
        describe(plan_upload(source, settings.repo, not settings.public, settings.license_id), console)
        return
    check_target(out, RELEASE, overwrite)
    # On the disk where the release will be: it has room for it, or the dry run says so.
    disk = next(parent for parent in out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=disk, prefix=".dry-run-") as place:
        folder = released(source, Path(place) / out.name, settings, Console(quiet=True), False)
        describe(plan_upload(folder, settings.repo, not settings.public, settings.license_id), console)


def released(source: Path, out: Path, settings: PushSettings, console: Console, overwrite: bool) -> Path:
    """Release a checkpoint under its name on the hub."""
    contents = read_checkpoint(resolve_checkpoint(source))
    return release(contents, out, console, overwrite, settings.repo, settings.license_id or UNKNOWN_LICENSE)


def check_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: with what would be right.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push = {repo!r}: must be OWNER/NAME ({one_line(error)})") from None
    if repo.count("/") != 1:
        raise UserError(f"--push = {repo!r}: must be OWNER/NAME, such as my-organisation/bert-base-85")


def connect(repo: str) -> HfApi:
    """Return a client whose token the hub knows.

    Raises:
        UserError: offline mode, no token, one that the hub does not know, or no network.
    """
    if huggingface_hub.constants.is_offline_mode():
        raise UserError(f"{repo}: not pushed: HF_HUB_OFFLINE is set; unset it, or look with --dry-run")
    with explained(repo, ""):
        token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            f"{repo}: no token for the hub; set HF_TOKEN to one with write permission, or run `hf auth login` once"
        )
    api = HfApi(token=token, library_name=TAG, library_version=__version__)
    with explained(repo, token):
        api.whoami()
    return api


def find_repository(api: HfApi, settings: PushSettings) -> Remote:
    """Look at what is there already.

    Raises:
        UserError: it is not what may be written to.
    """
    repo = settings.repo
    with explained(repo, str(api.token)):
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return Remote(None, set())
    wanted = "public" if settings.public else "private"
    if bool(info.private) == settings.public:
        raise UserError(
            f"{repo}: exists and is {'private' if info.private else 'public'}, not {wanted}; "
            f"{'leave out' if settings.public else 'say'} --public, or change it in the repository's settings"
        )
    files = {sibling.rfilename for sibling in info.siblings or []}
    content = sorted(files - NOT_CONTENT)
    if content and not settings.replace:
        raise UserError(
            f"{repo}: exists and holds {len(content)} files ({', '.join(content[:3])}…); give another name, or "
            "--replace to commit over them (its history keeps them)"
        )
    if content and SPARSITY_FILE not in files and TAG not in (info.tags or []):
        raise UserError(
            f"{repo}: holds no model of ours (no {SPARSITY_FILE}, no tag {TAG}), so it is not replaced"
        )
    return Remote(info.sha, files)


def push(api: HfApi, upload: Upload, remote: Remote) -> str:
    """Send everything as one commit, and make the repository first where there is none.

    Files that the hub has already, from a push that broke off too, are not sent again. Other files of the
    repository stay, but for weights and masks of an older model.

    Returns:
        The repository's address.

    Raises:
        UserError: the token may not write there, the repository has changed meanwhile, or the network broke off.
        FailedError: the hub has a fault.
    """
    # Not `upload_folder`: on slow lines it commits files before the weights that belong to them have arrived.
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in upload.files.items()
    ]
    stale = sorted((remote.files & MISLEADING) - set(upload.files))
    operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale]
    with explained(upload.repo, str(api.token)):
        if remote.commit is None:
            api.create_repo(upload.repo, private=upload.private)
        commit = api.create_commit(
            upload.repo,
            operations,
            commit_message=f"Upload with sparse-pretrain {__version__}",
            parent_commit=remote.commit,
        )
    return str(commit.repo_url)


@contextmanager
def explained(repo: str, token: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line, without the token.

    Raises:
        UserError: what the user can mend.
        FailedError: the hub has a fault.
    """
    try:
        yield
    except Exception as error:  # the client lets through the errors of several network libraries

        def clean(text: str) -> str:
            return " ".join(text.replace(token, "…").split())[:300] if token else " ".join(text.split())[:300]

        text = clean(str(error))
        answer = answer_of(error)
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            raise UserError(f"{repo}: the hub refuses what was to be sent: {text}") from None
        if answer is None:
            raise UserError(
                f"{repo}: no connection to {huggingface_hub.constants.ENDPOINT} ({type(error).__name__}: {text}); the "
                "same command goes on where it broke off"
            ) from None
        status = answer.response.status_code
        said = f": {clean(answer.server_message)}" if answer.server_message else ""
        if status >= 500:
            raise FailedError(f"{repo}: the hub has a fault ({status}{said}); try again later") from None
        raise UserError(f"{repo}: {REFUSALS.get(status, 'the hub refuses it')} ({status}{said})") from None


REFUSALS = {
    401: "the hub does not know the token; make a new one with write permission, and set HF_TOKEN to it",
    403: "the token may not write there; is the owner right, and has it write permission",
    404: "no such repository, or the token may not see it",
    409: "somebody else is writing to it; try again",
    412: "it has changed since it was looked at; try again",
    429: "too many requests; try again later",
}


def answer_of(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the hub's answer that led to an error, None when there was none."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error
