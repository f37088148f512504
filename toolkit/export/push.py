"""An exported folder to a model hub, by huggingface_hub: HF_ENDPOINT, HF_TOKEN (or the token of `hf auth
login`) and HF_HUB_OFFLINE mean here what they mean there.

    python -m toolkit export push mgm-2b-synth --to OWNER/mgm-2b-synth --yes

What is sent are the files that the proof lists, the proof and the card, in one commit: until it is made the
repository stays as it was. The token goes to the endpoint only and is in no message.
"""

import io
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, errors, get_token
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, logging
from huggingface_hub.utils.sha import git_hash
from pydantic import BaseModel, Field, ValidationError

from toolkit.assets.download import TIMEOUT
from toolkit.assets.folder import digests, present
from toolkit.assets.hub import endpoint
from toolkit.bundle.checks import secrets
from toolkit.bundle.findings import Finding
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.terminal import unguarded

CARD, PROOF = "README.md", "proof.json"
HUB_FILES = {".gitattributes"}  # which a hub adds to a new repository


class _Proof(BaseModel):
    """What is read of proof.json. files: `digest` of each file but the card and the proof itself."""

    questions: int = Field(gt=0)
    answers_equal: int
    max_logit_difference: float
    tolerance: float
    files: dict[str, dict[str, Any]] = Field(min_length=1)

    @property
    def passed(self) -> bool:
        return self.answers_equal == self.questions and self.max_logit_difference <= self.tolerance


@dataclass(frozen=True)
class Export:
    """An exported folder; files: `digest` of each. It is what `secrets` searches, too."""

    root: Path
    files: dict[str, dict[str, Any]]
    licence: str

    def members(self) -> list[str]:
        return list(self.files)

    def searched(self) -> dict[bool, float]:
        return {True: math.inf, False: math.inf}

    def path(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> io.BufferedReader:
        return self.path(name).open("rb")

    def equals(self, name: str, there: RepoFile | None) -> bool:
        """Whether a hub's file is ours: large ones by SHA-256, others by git's hash."""
        if there is None or there.size != self.files[name]["bytes"]:
            return False
        if there.lfs:
            return there.lfs.sha256 == self.files[name]["sha256"]
        return there.blob_id == git_hash(self.path(name).read_bytes())


def checked(folder: Path) -> Export:
    """The folder, whose files are those of its proof and hold no secret; else UserError."""
    if not (folder / PROOF).is_file():
        raise UserError(f"{folder} has no {PROOF}: name a folder that `export --output` wrote")
    again = "export the model again"
    try:
        proof = _Proof.model_validate(read_json(folder / PROOF))
    except ValidationError:
        raise UserError(f"{folder / PROOF} does not say which files were proved: {again}") from None
    if not proof.passed:
        raise UserError(f"{folder / PROOF} says that the export is not its source: {again}")
    paths = present(folder)
    for name, path in paths.items():
        if name not in {*proof.files, CARD, PROOF} or path.is_symlink():
            raise UserError(f"{path} is not a file that an export writes: move it away")
    if missing := sorted({*proof.files, CARD} - paths.keys()):
        raise UserError(f"{folder / missing[0]} is missing: {again}")
    files = digests(paths)
    for name, digest in proof.files.items():
        if files[name] != digest:
            raise UserError(f"{folder / name} is not the file that was proved: {again}")
    export = Export(folder, files, _licence(folder / CARD))
    for finding in secrets.keys(export):
        raise UserError(f"{folder}/{_said(finding)}: {finding.remedy}")
    return export


def _said(finding: Finding) -> str:
    line = f", line {finding.line}" if finding.line else ""
    return f"{finding.file}{line} {finding.message}"


def _licence(card: Path) -> str:
    """As the card's metadata name it."""
    try:
        licence = ModelCard.load(card).data.license
    except Exception as error:  # of the library and of its YAML reader
        raise UserError(f"the metadata of {card} cannot be read: {type(error).__name__}") from None
    if not licence:
        raise UserError(f"{card} names no licence: add `license: …` to its metadata")
    return str(licence)


def summary(export: Export, repository: str, public: bool) -> str:
    """What would be uploaded where, and what to look at before."""
    visible = "public" if public else "private"
    total = sum(file["bytes"] for file in export.files.values())
    return "\n".join(
        [
            f"to {endpoint()}/{repository}, {visible}, licence {export.licence}:",
            *(f"{file['bytes']:>16,}  {name}" for name, file in export.files.items()),
            f"{total:>16,}  bytes in {len(export.files)} files",
            *(f"look at it first: {_said(finding)}" for finding in secrets.traces(export)),
        ]
    )


def push(export: Export, repository: str, public: bool) -> tuple[str, list[str]]:
    """Upload what the repository lacks, then compare its files with ours. Returns its address and the names
    of the files sent; UserError for whatever the hub refuses."""
    if not (token := get_token()):
        raise UserError(f"no token: make one on {endpoint()}/settings/tokens and set it as HF_TOKEN")
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # what it tries again is logged with the address, which may be signed
    api = HfApi(endpoint=endpoint(), token=token)
    address = f"{endpoint()}/{repository}"
    with _refusals(repository):
        there = _opened(api, export, repository, public)
        if lacking := [name for name in export.files if not export.equals(name, there.get(name))]:
            there = _listed(api, repository, _commit(api, export, repository, lacking))
    wrong = [name for name in export.files if not export.equals(name, there.get(name))]
    if wrong := wrong or sorted(there.keys() - export.files.keys() - HUB_FILES):
        raise UserError(f"{address} does not hold the files of {export.root}: {wrong[0]} differs there")
    return address, lacking


def _opened(api: HfApi, export: Export, repository: str, public: bool) -> dict[str, RepoFile]:
    """The files of the repository, which is created where there is none."""
    try:
        private = api.model_info(repository, timeout=TIMEOUT).private
    except errors.RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        return {}
    if public == bool(private):
        now, flag = ("private", "leave out --public") if private else ("public", "add --public")
        raise UserError(f"{repository} exists and is {now}: {flag}, or change it in the hub's settings")
    there = _listed(api, repository)
    if others := sorted(there.keys() - export.files.keys() - HUB_FILES):
        raise UserError(
            f"{repository} holds {others[0]}, which is not a file of this export: choose another name, or "
            "delete it there"
        )
    return there


def _listed(api: HfApi, repository: str, revision: str | None = None) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository, recursive=True, revision=revision)
    return {item.path: item for item in tree if isinstance(item, RepoFile)}


def _commit(api: HfApi, export: Export, repository: str, names: list[str]) -> str:
    """One commit of these files, whose hash is returned; large files that the hub has already are not sent
    again."""
    additions = [CommitOperationAdd(name, export.path(name)) for name in names]
    with redirect_stderr(unguarded(sys.stderr)), warnings.catch_warnings(action="ignore"):  # for the bars
        return api.create_commit(
            repository, additions, commit_message="Export of the Better Synth toolkit"
        ).oid


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """What the library raises, in our words."""
    try:
        yield
    except UserError:
        raise
    except errors.OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing is uploaded: unset it") from None
    except Exception as error:  # of the library and its HTTP client
        if isinstance(error, OSError) and error.filename:  # a file of ours
            raise
        raise _refusal(repository, error) from None


def _refusal(repository: str, error: Exception) -> UserError:
    if isinstance(error, ValueError) and CARD in str(error):
        return UserError(" ".join(f"the hub refuses the folder: {error}".split()))
    # what storing a file raises stands behind what names the file
    refused = next((e for e in (error, error.__cause__) if isinstance(e, errors.HfHubHTTPError)), None)
    tokens = f"{endpoint()}/settings/tokens"
    again = "run the same command again, what has arrived is not sent again"
    match refused and refused.response.status_code:
        case None:
            name = type(error.__cause__ or error).__name__
            return UserError(
                f"{endpoint()} was not reached or broke off ({name}): check the network and {again}"
            )
        case 401:
            return UserError(f"{endpoint()} refuses your token: make one on {tokens} and set it as HF_TOKEN")
        case 403:
            return UserError(f"your token may not write to {repository}: {tokens} shows its rights")
        case status:
            return UserError(f"{endpoint()} answers with HTTP status {status}: {again}")
