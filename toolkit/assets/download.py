"""Download one file so that it is whole or absent: continues a `.part` file, compares the SHA-256, then
renames.

No more is fetched than the registry says that the file has, or LARGEST where it says nothing. A server that
sends less than SLOWEST is left, and so is one that leads to anything but http and https.
"""

import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from toolkit.assets import Download
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.progress import Progress

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 3  # connections an address: each continues where the one before was cut off
PAUSE = 2.0  # seconds between them
LARGEST = 1 << 40  # bytes of a file whose size is not known
SLOWEST = 1 << 10  # bytes a second, over TIMEOUT

# urllib's own opener knows file:, ftp: and data: as well
OPENER = urllib.request.OpenerDirector()
for handler in ("Proxy", "HTTP", "HTTPS", "HTTPRedirect", "HTTPDefaultError", "Unknown"):
    OPENER.add_handler(getattr(urllib.request, f"{handler}Handler")())
OPENER.add_handler(urllib.request.HTTPErrorProcessor())


def download(file: Download, path: Path) -> None:
    """Fetch `file` to `path`; a `path` with the right checksum is left alone. UserError says what every
    address answered."""
    if path.is_file() and sha256(path) == file.sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    problems = []
    for url in [file.url, *file.mirrors]:
        try:
            transfer(url, part, file.bytes or LARGEST)
        except TooMuch as error:
            part.unlink(missing_ok=True)
            problems.append(f"{url}: {error}")
            continue
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
                raise  # of the disk, not of the network
            problems.append(f"{url}: {error}")
            continue
        found = sha256(part)
        if found == file.sha256:
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            part.replace(path)
            return
        part.unlink()
        problems.append(f"{url}: its sha256 is {found}, the registry says {file.sha256}, so it was deleted")
    raise UserError(
        f"{path.name} could not be downloaded, check the network and run again to continue "
        f"({'; '.join(problems)})"
    )


class TooMuch(Exception):
    """A server sends more than the file may have."""


def transfer(url: str, part: Path, most: int) -> None:
    """Append what is missing of `url` to `part`; OSError (URLError, ConnectionError) when it is still
    incomplete after all attempts, TooMuch when it has more than `most` bytes."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return receive(url, part, most)
        except urllib.error.HTTPError as error:
            # nothing is missing, or it is longer than the file
            if error.code == 416 and part.exists() and part.stat().st_size:
                return None
            raise
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                raise ConnectionError(str(getattr(error, "reason", error))) from None
            print(f"{url}: {error}, trying again", file=sys.stderr, flush=True)
            time.sleep(PAUSE)


def receive(url: str, part: Path, most: int) -> None:
    """One connection; ConnectionError when it ends before the last byte or sends too little."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with OPENER.open(request, timeout=TIMEOUT) as response:
        if have and response.status != 206:  # the server sends the whole file
            have = 0
        # what urllib could read as a number
        total = None if response.length is None else have + response.length
        if (total or have) > most:
            raise TooMuch(f"it has {total or have} bytes, at most {most} are expected")
        progress = Progress(f"{part.stem} (MB)", total >> 20, have >> 20) if total else None
        with part.open("ab" if have else "wb") as handle:
            begin, since = time.monotonic(), have
            while block := response.read1(BLOCK):
                handle.write(block)
                have += len(block)
                if have > most:
                    raise TooMuch(f"it has more than the {most} bytes that are expected")
                if time.monotonic() - begin > TIMEOUT:
                    if have - since < SLOWEST * TIMEOUT:
                        raise ConnectionError(f"{have - since} bytes came in {TIMEOUT} s, which is too slow")
                    begin, since = time.monotonic(), have
                if progress:
                    progress.step((have >> 20) - progress.done)
    if total is not None and have < total:
        raise ConnectionError(f"cut off after {have} of {total} bytes")
