"""Any OpenAI-compatible chat endpoint: the cost first, patience with a bad connection, and every answer kept.

    export OPENAI_BASE_URL=https://api.openai.com/v1 OPENAI_API_KEY=...

An answer is found again by the SHA-256 of its whole request (model, prompt, image, parameters) in a JSON
lines file, which is part of the solution (toolkit/data/endpoint/responses.py): whoever has it makes the same
data again without network and key. Address and key are in no file and no message. Proxies of the environment
are not used.
"""

import base64
import email.utils
import hashlib
import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import ExifTags

from toolkit.counted import counted
from toolkit.data.endpoint import responses
from toolkit.data.endpoint.connection import Address, Pace, Stopped
from toolkit.data.endpoint.responses import Answer
from toolkit.data.network import reachable
from toolkit.errors import UserError
from toolkit.images import SIXTEEN_BITS, opened, rgb, size_of
from toolkit.progress import Progress

BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds before the second try and at most
LONGEST_WAIT = 600.0  # seconds; an endpoint that asks for more patience ends the run
LARGEST = 4 << 20  # bytes of an answer
MOST_TOKENS = 1 << 40  # that an endpoint may say it counted
PASSING = {408, 409, 425, 429}  # statuses that another try may change, beside 500 and above
FILTERED = {"content_filter", "content_policy_violation"}  # error codes that are about one request's content
MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}

Body = dict[str, Any]


class TransientFailure(Exception):
    """A failure that another try may cure; `wait`: seconds that the endpoint asks for."""

    def __init__(self, reason: str, wait: float | None = None, everyone: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.everyone = wait, everyone


def message(prompt: str, image: Path | None = None) -> dict[str, Any]:
    """A user's message with an image, as a data URL: the file's own bytes where a service sees in them what
    the trainer sees."""
    if image is None:
        return {"role": "user", "content": prompt}
    data = image.read_bytes()
    pixels = opened(data)
    kind = MIME.get(pixels.format or "")
    if kind is None or pixels.mode in SIXTEEN_BITS or pixels.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        buffer = io.BytesIO()
        rgb(pixels).save(buffer, "PNG")
        data, kind = buffer.getvalue(), MIME["PNG"]
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {
        "role": "user",
        "content": [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}],
    }


def digest(body: Body) -> str:
    """The key of a request's answer."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def tokens_of(body: Body) -> tuple[int, int]:
    """Estimated tokens of a request and the most that its answer may have.

    Text: four bytes of UTF-8 a token, four tokens a message. An image: 85 and 170 for each tile of 512
    pixels, when it is scaled to fit 2048 x 2048 and a short side of 768 (OpenAI's published rule for its
    GPT-4 models). An estimate: other models count otherwise.
    """
    count = 0
    for turn in body["messages"]:
        content = turn["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        count += 4
        for part in parts:
            if part["type"] == "text":
                count += math.ceil(len(part["text"].encode()) / 4)
            else:
                size = size_of(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
                scale = min(1.0, 2048 / max(size), 768 / min(size))
                tiles = math.prod(math.ceil(side * scale / 512) for side in size)
                count += 85 + 170 * tiles
    return count, body.get("max_tokens") or body["max_completion_tokens"]


@dataclass
class Endpoint:
    """Asks an endpoint for what the file `responses` lacks.

    Prices are per million tokens, `max_cost` in the same currency; what is asked for in several calls adds
    up. `timeout`: seconds for a whole answer; `retries`: tries after the first. `requests_per_minute` holds
    for retries too.
    """

    name: str  # of the operator, for messages
    responses: Path
    price_input: float
    price_output: float
    max_cost: float
    requests_per_minute: float = 60.0
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    spent: float = field(default=0.0, init=False)  # estimated

    def complete(self, count: int, build: Callable[[int], Body]) -> list[Answer]:
        """The answers to requests 0 to `count` - 1, which `build` makes when they are needed: bodies with
        images are large.

        UserError if answers are missing and there is no key, if they would cost more than `max_cost`, if the
        endpoint refuses a request, or if it stays out of reach; answers that came before are kept, so the run
        can be started again.
        """
        keys = [digest(build(number)) for number in range(count)]
        answers = responses.read(self.responses)
        lacking = len(set(keys) - answers.keys())
        if lacking:
            self._fill(keys, build, Address.of_environment(lacking, self.responses))
            answers = responses.read(self.responses)
        return [answers[key] for key in keys]

    def _fill(self, keys: Sequence[str], build: Callable[[int], Body], address: Address) -> None:
        with responses.locked(self.responses) as descriptor:
            try:
                # a run that had the file before may have asked for the same
                answers = responses.read(self.responses)
                missing = {key: number for number, key in enumerate(keys) if key not in answers}
                if missing:
                    self._estimate(list(missing.values()), build)
                    self._ask(missing, build, address, descriptor)
            finally:
                responses.sort(self.responses)

    def _estimate(self, numbers: Sequence[int], build: Callable[[int], Body]) -> None:
        """Print what the requests may cost; UserError if that is too much."""
        counts = [tokens_of(build(number)) for number in numbers]
        tokens_in, tokens_out = (sum(column) for column in zip(*counts, strict=True))
        cost = (tokens_in * self.price_input + tokens_out * self.price_output) / 1e6
        print(
            f"{self.name}: {counted(len(numbers), 'new request')}, about {tokens_in} tokens at "
            f"{self.price_input} a million and at most {tokens_out} tokens of answers at "
            f"{self.price_output}: {cost:.4f}, {self.spent + cost:.4f} with earlier requests, max_cost is "
            f"{self.max_cost}",
            file=sys.stderr,
            flush=True,
        )
        if self.spent + cost > self.max_cost:
            raise UserError(
                f"the answers may cost {self.spent + cost:.4f}, max_cost is {self.max_cost}: raise it or ask "
                "for fewer rows"
            )
        self.spent += cost

    def _ask(
        self, missing: dict[str, int], build: Callable[[int], Body], address: Address, descriptor: int
    ) -> None:
        """Send the requests and append each answer as it comes."""
        pace, progress = Pace(self.requests_per_minute), Progress(self.name, len(missing))
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Data-Juicer shows a line for each request
        used = [0, 0]
        with (
            reachable(address.host, address.port),
            httpx.Client(timeout=self.timeout, follow_redirects=False, trust_env=False) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            pending = {
                pool.submit(self._answer, client, address, pace, build, number): key
                for key, number in missing.items()
            }
            try:
                for future in as_completed(list(pending)):
                    if isinstance(future.exception(), Stopped):
                        continue  # the failure that stopped it is among the others
                    answer = future.result()
                    responses.append(descriptor, pending.pop(future), answer)
                    used = [total + count for total, count in zip(used, answer.tokens, strict=True)]
                    progress.step()
            finally:  # after a failure: answers that are here are paid for
                pace.stop.set()
                pool.shutdown(cancel_futures=True)
                for future, key in pending.items():
                    if not future.cancelled() and not future.exception():
                        responses.append(descriptor, key, future.result())
        cost = (used[0] * self.price_input + used[1] * self.price_output) / 1e6
        print(
            f"{self.name}: the endpoint counted {used[0]} and {used[1]} tokens: {cost:.4f}",
            file=sys.stderr,
            flush=True,
        )

    def _answer(
        self, client: httpx.Client, address: Address, pace: Pace, build: Callable[[int], Body], number: int
    ) -> Answer:
        """The answer to one request; a failure lets no other begin."""
        try:
            return self._tried(client, address, pace, build, number)
        except Exception:
            pace.stop.set()
            raise

    def _tried(
        self, client: httpx.Client, address: Address, pace: Pace, build: Callable[[int], Body], number: int
    ) -> Answer:
        """The answer to one request, however many tries it takes."""
        content = json.dumps(build(number), sort_keys=True).encode()
        for attempt in range(self.retries + 1):
            pace.wait()
            try:
                return self._once(client, address, content)
            except TransientFailure as trouble:
                last = trouble
                wait = min(BACKOFF * 2**attempt, LONGEST_BACKOFF) if trouble.wait is None else trouble.wait
                if wait > LONGEST_WAIT:
                    raise UserError(
                        f"the endpoint asks for {wait:.0f} s of patience ({trouble}): run again later"
                    ) from None
                if attempt < self.retries:
                    pace.hold(wait) if trouble.everyone else pace.stop.wait(wait)
        if str(last) == NOTHING:
            return Answer(None, NOTHING)
        raise UserError(
            f"the endpoint gave no usable answer in {self.retries + 1} tries, the last time: {last}; the "
            f"answers so far are kept in {self.responses}, run again to go on"
        )

    def _once(self, client: httpx.Client, address: Address, content: bytes) -> Answer:
        headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
        end, received = time.monotonic() + self.timeout, b""
        try:
            with client.stream("POST", address.url, content=content, headers=headers) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LARGEST:
                        raise TransientFailure(f"an answer of more than {LARGEST} bytes")
                    if time.monotonic() > end:
                        raise TransientFailure(f"no whole answer within {self.timeout} s")
        except httpx.TimeoutException:
            raise TransientFailure(f"no answer within {self.timeout} s") from None
        except httpx.ConnectError:
            raise TransientFailure("no connection") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may quote what was sent
            raise TransientFailure(f"the answer broke off ({type(error).__name__})") from None
        return judged(response.status_code, response.headers, _parsed(received, address.key))


NOTHING = "an answer without text"


def _parsed(received: bytes, key: str) -> Any:
    """The JSON in an answer, None where it is none; a key that the endpoint repeats is taken out, a short one
    is a word like `none`."""
    try:
        text = json.dumps(json.loads(received), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return json.loads(text.replace(json.dumps(key)[1:-1], "[key]") if len(key) >= 8 else text)


def judged(status: int, headers: httpx.Headers, value: Any) -> Answer:
    """What an answer of HTTP with the JSON `value` comes to. TransientFailure: try again; UserError: no use
    trying, for this request or any."""
    error = value.get("error") if isinstance(value, dict) else None
    code, explanation = (
        (error.get("code"), str(error.get("message"))[:200]) if isinstance(error, dict) else (None, "")
    )
    code = code if isinstance(code, str) else None
    if 300 <= status < 400:
        raise UserError(
            f"the endpoint redirects (HTTP {status}), which is not followed with a key: set OPENAI_BASE_URL "
            "to where it leads"
        )
    if status in (401, 403):
        raise UserError(
            f"the endpoint refuses the key (HTTP {status}): check OPENAI_API_KEY and OPENAI_BASE_URL"
        )
    if code == "insufficient_quota":
        raise UserError(f"the account behind the key has no credit left (HTTP {status})")
    if status in PASSING or status >= 500:
        raise TransientFailure(
            f"HTTP {status}", _retry_after(headers.get("Retry-After")), everyone=status in (429, 503)
        )
    if code in FILTERED:
        return Answer(None, "filtered by the endpoint")
    if status != 200:
        detail = f": {' '.join(explanation.split())}" if explanation else ""
        raise UserError(f"the endpoint refuses a request (HTTP {status}){detail}")
    if "json" not in headers.get("Content-Type", ""):
        raise TransientFailure(
            f"an answer of type {headers.get('Content-Type', 'unknown')[:40]} instead of JSON"
        )
    if not isinstance(value, dict):
        raise TransientFailure("an answer that is not JSON")
    return _answer_in(value)


def _answer_in(value: dict[str, Any]) -> Answer:
    """The answer in a chat completion."""
    try:
        choice = value["choices"][0]
        text, finish, refusal = (
            choice["message"].get("content"),
            choice.get("finish_reason"),
            choice["message"].get("refusal"),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TransientFailure(NOTHING) from None
    stated = value.get("usage")
    usage = stated if isinstance(stated, dict) else {}
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if refusal or finish == "content_filter":
        return Answer(None, "filtered by the endpoint", tokens)
    if finish == "length":
        return Answer(None, "cut off at the most tokens allowed", tokens)
    if not isinstance(text, str) or not text.strip():
        raise TransientFailure(NOTHING)
    return Answer(text.encode("utf-8", errors="replace").decode(), None, tokens)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
