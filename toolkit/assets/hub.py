"""Where a hub has a file, by huggingface_hub: HF_ENDPOINT, HF_TOKEN (or the token of `hf auth login`) and
HF_HUB_OFFLINE mean here what they mean there.

The library states commit, size and checksum; `download` brings the bytes, since the library starts a file
anew when it was cut off. The token goes to the endpoint only and is in no message.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from toolkit.assets import Hub
from toolkit.assets.download import BUSY, TIMEOUT, Busy, Source, patiently
from toolkit.errors import UserError

Result = TypeVar("Result")


class Located(NamedTuple):
    """A file of a hub. sha256: of a large file, which the hub itself names by it; else None."""

    source: Source
    revision: str
    bytes: int | None
    sha256: str | None


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def revision(entry: Hub) -> str:
    """The newest commit of the repository; UserError where the hub does not tell."""
    from huggingface_hub import HfApi

    page = Source(f"{endpoint()}/{entry.repository}")
    api = HfApi(endpoint=endpoint())
    info = _asked(entry, page, lambda: api.repo_info(entry.repository, repo_type=entry.type, timeout=TIMEOUT))
    if not info.sha:
        raise UserError(f"{page} names no commit")
    return info.sha


def locate(entry: Hub, name: str, revision: str) -> Located:
    """The file `name` of the repository at a commit; UserError, whose text can stand in brackets, where it is
    not to be had."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(entry.repository, name, repo_type=entry.type, revision=revision, endpoint=endpoint())
    source = Source(url)
    metadata = _asked(entry, source, lambda: get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=endpoint()))
    if metadata.commit_hash not in (None, revision):
        raise UserError(f"{source}: the hub answers with the commit {metadata.commit_hash}")
    # a repository that was renamed: the token would not follow there
    if urlsplit(metadata.location).netloc == urlsplit(url).netloc:
        url = metadata.location
    headers = {name: value for name, value in build_hf_headers().items() if value}
    sha256 = metadata.etag if metadata.etag and len(metadata.etag) == 64 else None
    return Located(Source(url, headers), revision, metadata.size, sha256)


def _asked(entry: Hub, source: Source, call: Callable[[], Result]) -> Result:
    """What the hub answers, in our words where it refuses."""
    from huggingface_hub import errors

    def once() -> Result:
        try:
            return call()
        except errors.GatedRepoError:
            page = f"https://huggingface.co/{entry.repository}"
            raise UserError(
                f"{entry.repository} is gated: accept its terms on {page}, make a token on "
                "https://huggingface.co/settings/tokens and set it as HF_TOKEN"
            ) from None
        except errors.OfflineModeIsEnabled:
            raise UserError(f"{source}: HF_HUB_OFFLINE is set, so the hub is not asked") from None
        except errors.RevisionNotFoundError:
            raise UserError(f"{source}: the hub has no such commit") from None
        except errors.RemoteEntryNotFoundError:
            raise UserError(f"{source}: the hub has no such file (404)") from None
        except errors.RepositoryNotFoundError:
            raise UserError(
                f"{source}: the hub has no such repository, or your HF_TOKEN may not see it"
            ) from None
        except errors.HfHubHTTPError as error:
            raise _refused(source, error.response) from None
        except Exception as error:  # of the library's HTTP client, which is its own affair
            raise Busy(type(error).__name__) from None

    try:
        return patiently(source, once)
    except ConnectionError as error:
        raise UserError(f"{source}: {error}") from None


def _refused(source: Source, response: Any) -> Exception:
    status = response.status_code
    if status not in BUSY:
        return UserError(f"{source}: HTTP status {status}")
    after = response.headers.get("Retry-After", "")
    return Busy(f"HTTP status {status}", float(after) if after.isdigit() else None)
