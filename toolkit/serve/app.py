"""The HTTP interface: routes, key, limits."""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.mgm.answer import Prompts
from toolkit.mgm.generate import THREADS
from toolkit.pages import script_source
from toolkit.serve.chat import Reader, Refused
from toolkit.serve.engine import Answering, Engine
from toolkit.serve.metrics import Metrics
from toolkit.serve.reply import Reply

OPEN_TO_ALL = ("/", "/health")  # without the key
PAGE = Path(__file__).parent / "page.html"
GRACE = 5.0  # seconds beyond the limit for a reader to take what is written


@dataclass(frozen=True)
class Limits:
    """Of a request: bytes of its body, pixels of its image, new tokens, seconds from its arrival to its end.
    queue: requests that may wait beside those that are answered."""

    body: int
    pixels: int
    new_tokens: int
    seconds: float
    queue: int


class Gate:
    """Lets requests pass that have the key, compared in a time that tells nothing of it."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_TO_ALL:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
                refused = Refused(401, "the key is missing or wrong: send Authorization: Bearer KEY")
                headers = {"WWW-Authenticate": "Bearer"}
                await JSONResponse(refused.json(), 401, headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Completions:
    """POST /v1/chat/completions."""

    def __init__(
        self, reader: Reader, engines: Mapping[str, Engine], limits: Limits, metrics: Metrics
    ) -> None:
        self.reader, self.engines, self.limits, self.metrics = reader, engines, limits, metrics
        self.pool = ThreadPoolExecutor(THREADS, "images")
        self.rooms = {name: engine.slots + limits.queue for name, engine in engines.items()}
        self.taken: Counter[str] = Counter()  # of each model's room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.metrics.statuses[message["status"]] += 1
            await send(message)

        try:
            async with asyncio.timeout(self.limits.seconds + GRACE):
                await self._admit(Request(scope, receive), counted)
        except Refused as refused:
            headers = {"Retry-After": "1"} if refused.status in (429, 503) else None
            await JSONResponse(refused.json(), refused.status, headers)(scope, receive, counted)
        except TimeoutError:  # the body does not come; or nobody reads what is written: the connection is cut
            if not started:
                late = Refused(408, f"no whole request in {self.limits.seconds + GRACE:g} s")
                await JSONResponse(late.json(), 408, {"Connection": "close"})(scope, receive, counted)
        except ClientDisconnect:
            pass

    async def _admit(self, request: Request, send: Send) -> None:
        if any(engine.failure for engine in self.engines.values()):
            raise Refused(503, "the model failed: the server ends")
        if self.metrics.under_way >= sum(self.rooms.values()):
            await whole_body(request, 0)
            raise full(self.metrics.under_way)
        self.metrics.under_way += 1
        try:
            await self._answer(request, send)
        finally:
            self.metrics.under_way -= 1

    async def _answer(self, request: Request, send: Send) -> None:
        arrived = time.monotonic()
        body, size = await whole_body(request, self.limits.body)
        if size > self.limits.body:
            raise Refused(413, f"the body has {size} bytes, at most {self.limits.body} are read")
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind.strip().lower() != "application/json":
            # a page of another site could send text/plain without the browser's asking
            raise Refused(415, "Content-Type must be application/json")
        chat, name, row = await asyncio.get_running_loop().run_in_executor(self.pool, self.reader.read, body)
        del body
        self.metrics.prompt_tokens += row.prompt_tokens
        if self.taken[name] >= self.rooms[name]:
            raise full(self.taken[name])
        self.taken[name] += 1
        engine = self.engines[name]
        number = engine.submit(row)
        gone = asyncio.create_task(cancelled_when_gone(request, row))
        try:
            deadline = arrived + self.limits.seconds
            reply = Reply(chat, row, self.reader.models[name].tokenizer, name, deadline)
            await (await reply.response())(request.scope, request.receive, send)
            self.metrics.answered += 1
            self.metrics.seconds += time.monotonic() - arrived
            self.metrics.first_token_seconds += row.first - arrived
        finally:
            engine.cancel(number)
            gone.cancel()
            self.taken[name] -= 1


def full(under_way: int) -> Refused:
    """No room for another request."""
    return Refused(429, f"{under_way} requests are under way: try again later", code="queue_full")


async def whole_body(request: Request, most: int) -> tuple[bytes, int]:
    """The body and its size; of one that is longer than `most` nothing is kept, and it is read all the same,
    since a client that still writes would not read the answer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        parts.append(part)
        if size > most:
            parts.clear()
    return b"".join(parts), size


async def cancelled_when_gone(request: Request, row: Answering) -> None:
    """Let nobody wait for the row's tokens when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    row.cancelled = True
    row.changed.set()


def policy(html: str) -> str:
    """What the page may do: run its one script, show the images it was given, ask this server."""
    allowed = (
        f"script-src '{script_source(html)}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
    )
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def application(
    models: Mapping[str, Prompts],
    engines: Mapping[str, Engine],
    limits: Limits,
    key: str,
    hosts: list[str],
) -> Starlette:
    """The whole application.

    models, engines: by the models' names. key: that is asked for, none if empty. hosts: that the Host header
    may name, so that no page of another site reaches a server without a key by a name of its own.
    """
    metrics, created = Metrics(), int(time.time())
    reader = Reader(models, limits.pixels, limits.new_tokens)
    entry = {"object": "model", "created": created, "owned_by": "better-synth"}

    html = PAGE.read_text(encoding="utf-8")

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy(html)})

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry | {"id": name} for name in models]})

    async def described(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            refused = Refused(404, f"the model {name!r} is not served here", "model", "model_not_found")
            return JSONResponse(refused.json(), refused.status)
        return JSONResponse(entry | {"id": name})

    async def health(request: Request) -> Response:
        broken = any(engine.failure for engine in engines.values())
        state = "failed" if broken else "ok"
        return JSONResponse({"status": state, "model": ", ".join(engines)}, 503 if broken else 200)

    async def numbers(request: Request) -> Response:
        together = engines.values()
        text = metrics.text(
            waiting=sum(engine.waiting for engine in together),
            slots_busy=sum(engine.running for engine in together),
            slots=sum(engine.slots for engine in together),
            generated_tokens_total=sum(engine.generated for engine in together),
            near_ties_total=sum(engine.again for engine in together),
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(Refused(error.status_code, error.detail).json(), error.status_code, error.headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for engine in engines.values():
            engine.start(asyncio.get_running_loop())
        yield
        await asyncio.gather(*(engine.stop() for engine in engines.values()))

    gates = [Middleware(Gate, key=key)] if key else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", numbers),
            Route("/v1/models", listed),
            Route("/v1/models/{name}", described),
            Route("/v1/chat/completions", Completions(reader, engines, limits, metrics), methods=["POST"]),
        ],
        middleware=gates,
        exception_handlers={HTTPException: failed},
        lifespan=lifespan,
    )
