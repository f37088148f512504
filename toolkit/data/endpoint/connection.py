"""How an endpoint is reached: its address and key from the environment, and the pace of requests."""

import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

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
