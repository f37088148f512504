"""A tiny random model behind a real socket."""

import base64
import io
import json
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import httpx
import uvicorn
from PIL import Image

from toolkit.mgm.answer import Answerer
from toolkit.serve.app import Limits, application
from toolkit.serve.engine import Engine
from toolkit.serve.worker import work

NAME = "MGM-Tiny-Finetune-served"
LIMITS = {"body": 1 << 20, "pixels": 100_000, "new_tokens": 200, "seconds": 60.0, "queue": 64}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def body(text: str, data: bytes | None = None, **fields) -> dict:
    """A chat request."""
    content: list = [{"type": "text", "text": text}]
    if data is not None:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 12} | fields


def events(lines) -> list:
    """The values of server-sent events, the last "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in lines if line]
    return [value if value == "[DONE]" else json.loads(value) for value in data]


@contextmanager
def serving(folder, batch_size: int = 16, key: str = "", **limits) -> Iterator[SimpleNamespace]:
    """A server in a thread, its models in others: .client, .engine, .url, .server. folder: of the model, or
    of several by name."""
    folders = folder if isinstance(folder, dict) else {NAME: folder}
    values = LIMITS | limits
    stop = lambda: setattr(server, "should_exit", True)  # noqa: E731
    models, engines = {}, {}
    for name, path in folders.items():
        here, there = multiprocessing.Pipe()
        load = partial(Answerer, path, "cpu", batch_size)
        threading.Thread(target=work, args=(there, load, values["new_tokens"])).start()
        models[name], _ = here.recv()
        engines[name] = Engine(here, batch_size, stop)
    app = application(models, engines, Limits(**values), key, ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.02)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        limits = httpx.Limits(max_connections=100)
        with httpx.Client(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
            yield SimpleNamespace(client=client, engine=next(iter(engines.values())), url=url, server=server)
    finally:
        server.should_exit = True
        thread.join()
