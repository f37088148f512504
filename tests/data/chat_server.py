"""A chat endpoint on this machine that also misbehaves."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"


def completion(text: Any, **choice: Any) -> dict[str, Any]:
    """The body of a good answer."""
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }


class Server(ThreadingHTTPServer):
    """`script`: what to do with each coming request, a function of the handler; when it is empty, `answer`
    gives the text.

    `bodies`, `times` and `headers`: what came, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Callable[[Handler], None]] = []
        self.answer: Callable[[dict], Any] = lambda body: "a caption from the server"
        self.bodies, self.times, self.headers, self.lock = [], [], [], threading.Lock()
        self.busy = self.busiest = 0
        self.dripped = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of the test."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers) | {"path": self.path})
            step = server.script.pop(0) if server.script else None
            server.busy += 1
            server.busiest = max(server.busy, server.busiest)
        try:
            if step:
                step(self)
            else:
                self.reply(200, completion(server.answer(body)))
        finally:
            with server.lock:
                server.busy -= 1

    def reply(self, status: int, value: Any, kind: str = "application/json", **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def replies(
    status: int, value: Any, kind: str = "application/json", **headers: str
) -> Callable[[Handler], None]:
    """A step of a script."""
    return lambda handler: handler.reply(status, value, kind, **headers)


def cut_off(handler: Handler) -> None:
    """Half of a good body, then the connection ends."""
    data = json.dumps(completion("half")).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def slow(seconds: float) -> Callable[[Handler], None]:
    """A good answer, late."""

    def step(handler: Handler) -> None:
        time.sleep(seconds)
        handler.reply(200, completion("late"))

    return step


def dripping(handler: Handler) -> None:
    """A byte now and then for a minute, so that no single wait is long; the server's `dripped` says that
    somebody waited for all."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1200")
    handler.end_headers()
    for _ in range(1200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    handler.server.dripped = True
    handler.close_connection = True


def huge(handler: Handler) -> None:
    """More than anybody should read."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    for _ in range(1 << 10):
        handler.wfile.write(b" " * (1 << 20))
    handler.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the block ends."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
