"""Download one file so that it is whole or absent: continues a `.part` file, compares the SHA-256, then
renames.

No more is fetched than the file has, or LARGEST where nobody says how much that is. A server that sends less
than SLOWEST is left, and so is one that leads to anything but http and https. A file whose checksum is not
known is only continued where the server says that it is still the same one, and only whole where the server
says how long it is.
"""

import http.client
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from toolkit.assets.lock import Expected
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.progress import Progress

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 3  # connections an address without a new byte: each continues where the one before was cut off
PAUSE = 2.0  # seconds between them
LONGEST = 600.0  # seconds that a server may ask to wait (Retry-After)
LARGEST = 1 << 40  # bytes of a file whose size is not known
SLOWEST = 1 << 10  # bytes a second, over TIMEOUT
BUSY = (408, 429, 500, 502, 503, 504)  # answers that may be others a little later

# urllib's own opener knows file:, ftp: and data: as well
OPENER = urllib.request.OpenerDirector()
for handler in ("Proxy", "HTTP", "HTTPS", "HTTPRedirect", "HTTPDefaultError", "Unknown"):
    OPENER.add_handler(getattr(urllib.request, f"{handler}Handler")())
OPENER.add_handler(urllib.request.HTTPErrorProcessor())

Result = TypeVar("Result")


class Source(NamedTuple):
    """An address, and what is sent to this host only: a token stays behind when another one is led to."""

    url: str
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __str__(self) -> str:
        """As it may be printed and recorded: without a name, a password or a signature."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.url.partition("?")[0])

    def request(self, extra: dict[str, str], method: str = "GET") -> urllib.request.Request:
        request = urllib.request.Request(self.url, headers=extra, method=method)
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        return request


class Meter:
    """The progress of all downloads of a command, in MB; threads may share it."""

    def __init__(self, what: str) -> None:
        self._progress = Progress(f"{what} (MB)", 0)
        self._sizes: dict[Path, int] = {}
        self._done = 0
        self._lock = threading.Lock()
        self.stopped = False  # the command ends: threads that still download shall end, too

    def expect(self, path: Path, size: int) -> None:
        """A file of so many bytes will come."""
        with self._lock:
            self._sizes.setdefault(path, size)
            self._progress.total = sum(self._sizes.values()) >> 20

    def step(self, count: int) -> None:
        """So many bytes came; negative: have to come again."""
        if self.stopped and count > 0:
            raise Stopped
        with self._lock:
            self._done += count
            if change := (self._done >> 20) - self._progress.done:
                self._progress.step(change)


class Stopped(Exception):
    """The command has ended meanwhile."""


class Busy(Exception):
    """It may be otherwise in a moment. after: seconds that the server asks to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class TooMuch(Exception):
    """A server sends more than the file may have."""


def patiently(source: Source, call: Callable[[], Result], size: Callable[[], int] = lambda: 0) -> Result:
    """What `call` returns, tried again where it is Busy; ConnectionError after ATTEMPTS of which none brought
    a byte more. size: of what has come."""
    tried, most = 0, size()
    while True:
        try:
            return call()
        except Busy as error:
            tried = 1 if size() > most else tried + 1
            most = max(most, size())  # a server may make us start over
            if tried >= ATTEMPTS or (error.after or 0) > LONGEST:
                raise ConnectionError(str(error)) from None
            print(f"{source}: {error}, trying again", file=sys.stderr, flush=True)
            time.sleep(PAUSE if error.after is None else error.after)


def download(
    sources: Iterable[Source],
    path: Path,
    expected: Expected | None = None,
    bytes: int | None = None,
    meter: Meter | None = None,
    problems: Iterable[str] = (),
) -> Source | None:
    """Fetch `path` from the first of `sources` that has it and return which; None where it was there already.

    problems: what is already known to be wrong with other sources. UserError says what every source answered.
    """
    if expected and path.is_file() and sha256(path) == expected.sha256:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = (path.with_name(f"{path.name}.{end}") for end in ("part", "tag"))
    problems = list(problems)
    meter = meter or Meter(path.name)
    if bytes is not None:
        meter.expect(path, bytes)
    for source in sources:
        try:
            receive(source, part, tag, expected is not None, bytes, meter)
        except TooMuch as error:
            part.unlink(missing_ok=True)
            problems.append(f"{source}: {error}")
            continue
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
                raise  # of the disk, not of the network
            problems.append(f"{source}: {error}")
            continue
        problem = None
        if expected and (got := sha256(part)) != expected.sha256:
            problem = f"its sha256 is {got}, {expected.by} says {expected.sha256}"
        elif bytes is not None and (size := part.stat().st_size) != bytes:
            problem = f"it has {size} bytes, {bytes} are expected"
        if problem is None:
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            part.replace(path)
            tag.unlink(missing_ok=True)
            return source
        part.unlink()
        problems.append(f"{source}: {problem}, so it was deleted")
    if not part.exists():
        tag.unlink(missing_ok=True)
    raise UserError(
        f"{path.name} could not be downloaded, check the network and run again to continue "
        f"({'; '.join(problems)})"
    )


def length(source: Source) -> int | None:
    """The size that a server states before anything is fetched, None where it does not answer."""
    try:
        with OPENER.open(source.request({}, "HEAD"), timeout=TIMEOUT) as response:
            value = response.headers.get("Content-Length", "")
            return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else None
    except (OSError, http.client.HTTPException):
        return None


def have(path: Path) -> int:
    """Bytes of a file that an interrupted download has."""
    return _size(path.with_name(f"{path.name}.part"))


def receive(source: Source, part: Path, tag: Path, known: bool, bytes: int | None, meter: Meter) -> None:
    """Append what is missing of a file to `part`. known: its checksum will be compared.

    OSError (URLError, ConnectionError) when it is still incomplete after all attempts, TooMuch when it is
    longer than it may be.
    """
    meter.step(_size(part))
    try:
        patiently(source, lambda: _connect(source, part, tag, known, bytes, meter), lambda: _size(part))
    except BaseException:
        meter.step(-_size(part))  # another source starts by counting it
        raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _connect(source: Source, part: Path, tag: Path, known: bool, bytes: int | None, meter: Meter) -> None:
    """One connection; Busy when it ends before the last byte or sends too little."""
    have = _size(part)
    if have and not known and not tag.exists():  # of what it is the beginning, nobody can say
        part.unlink()
        meter.step(-have)
        have = 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and not known:
        headers["If-Range"] = tag.read_text(encoding="utf-8")
    try:
        with OPENER.open(source.request(headers), timeout=TIMEOUT) as response:
            _read(response, part, tag, have, known, bytes, meter)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or it is longer than the file
            if known or have == bytes:
                return
            part.unlink()
            meter.step(-have)
            raise Busy("it has less than was fetched of it") from None
        if error.code in BUSY:
            after = error.headers.get("Retry-After", "")
            raise Busy(str(error), float(after) if after.isdigit() else None) from None
        raise
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise Busy(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _read(
    response: Any, part: Path, tag: Path, have: int, known: bool, bytes: int | None, meter: Meter
) -> None:
    if have and response.status != 206:  # the server sends the whole file
        meter.step(-have)
        have = 0
    if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        raise OSError(f"the server sends another part of the file than that from byte {have}")
    most = LARGEST if bytes is None else bytes
    # what http.client could read as a number
    total = None if response.length is None else have + response.length
    if total is None and not known and not response.chunked:
        raise OSError(
            "the server does not say how long the file is, so nobody could tell whether it is whole"
        )
    if (total or have) > most:
        raise TooMuch(f"it has {total or have} bytes, at most {most} are expected")
    if not have:
        _remember(response, tag)
    if total:
        meter.expect(part.with_suffix(""), total)
    with part.open("ab" if have else "wb") as handle:
        begin, since = time.monotonic(), have
        while block := response.read1(BLOCK):
            handle.write(block)
            meter.step(len(block))
            have += len(block)
            if have > most:
                raise TooMuch(f"it has more than the {most} bytes that are expected")
            if time.monotonic() - begin > TIMEOUT:
                if have - since < SLOWEST * TIMEOUT:
                    raise OSError(f"{have - since} bytes came in {TIMEOUT} s, which is too slow")
                begin, since = time.monotonic(), have
    if total is not None and have < total:
        raise Busy(f"cut off after {have} of {total} bytes")


def _remember(response: Any, tag: Path) -> None:
    """What the server calls this version of the file: a strong ETag, or a date."""
    value = response.headers.get("ETag", "")
    value = value if value.startswith('"') else response.headers.get("Last-Modified", "")
    if value.isprintable() and value:
        tag.write_text(value, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)
