"""How an endpoint is reached: its address and key from the environment, the pace of requests, the one way
through where all is refused."""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from toolkit.errors import UserError

BASE_URL = "https://api.openai.com/v1"  # where OPENAI_BASE_URL does not say otherwise


@dataclass(frozen=True)
class Address:
    """Where to send requests, and the key, which no representation shows."""

    url: str
    host: str
    port: int
    key: str = field(repr=False)

    @classmethod
    def of_environment(cls, lacking: int, responses: Path) -> "Address":
        """UserError where the variables do not give an address and a key; it shows neither."""
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise UserError(
                f"{responses} lacks {lacking} of the answers and OPENAI_API_KEY is not set: set it and "
                "OPENAI_BASE_URL to ask for them, or put the file in place that the answers were kept in"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError("OPENAI_API_KEY has spaces or characters that no key has: set it again")
        try:
            url = httpx.URL(f"{os.environ.get('OPENAI_BASE_URL', BASE_URL).rstrip('/')}/chat/completions")
        except httpx.InvalidURL:
            url = httpx.URL("")
        if (
            url.scheme not in ("http", "https")
            or not re.fullmatch(r"[\w.:-]+", url.host)
            or url.userinfo
            or url.query
            or url.fragment
        ):
            raise UserError(
                "OPENAI_BASE_URL is not an address like https://host/v1, without a user, password or query"
            )
        return cls(str(url), url.host, url.port or {"http": 80, "https": 443}[url.scheme], key)


class Stopped(Exception):
    """A request was not begun because another failed."""


class Pace:
    """Holds requests to so many a minute, and back for as long as the endpoint asks. `stop`: nobody waits, no
    request begins."""

    def __init__(self, per_minute: float) -> None:
        self.interval, self.next = 60 / per_minute, 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()

    def wait(self) -> None:
        """Until a request may begin; Stopped if none may."""
        delay = 0.0
        while not self.stop.wait(delay):
            with self.lock:
                delay = self.next - time.monotonic()
                if delay <= 0:
                    self.next = time.monotonic() + self.interval
                    return
        raise Stopped

    def hold(self, seconds: float) -> None:
        """No request begins for so long."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


@contextmanager
def reachable(host: str, port: int) -> Iterator[None]:
    """Connections to one host and port, also while a recipe runs and all others are refused
    (`juicer.offline`)."""
    patched = "connect" in vars(socket.socket)  # as `offline` sets it
    refuse, resolve, connect = (
        socket.socket.connect,
        socket.getaddrinfo,
        super(socket.socket, socket.socket).connect,
    )
    addresses: set[tuple[Any, ...]] = set()

    def getaddrinfo(name: Any, service: Any, *args: Any, **kwargs: Any) -> list:
        if (name, service) != (host, port):
            return resolve(name, service, *args, **kwargs)
        entries = _getaddrinfo(name, service, *args, **kwargs)
        addresses.update(entry[4][:2] for entry in entries)
        return entries

    def connect_found(self: socket.socket, address: Any) -> None:
        (connect if self.family != socket.AF_UNIX and address[:2] in addresses else refuse)(self, address)

    socket.socket.connect = connect_found  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.getaddrinfo = resolve
        if patched:
            socket.socket.connect = refuse  # type: ignore[method-assign]
        else:
            del socket.socket.connect


_getaddrinfo = socket.getaddrinfo  # before a recipe refuses it
