"""Command line of the server."""

import argparse
import os
import signal
import socket
from functools import partial
from pathlib import Path

from toolkit.arguments import at_least_one, from_zero
from toolkit.ask.folder import answerer, base_flags, base_of, name_of
from toolkit.config import Asked, as_flag
from toolkit.errors import UserError
from toolkit.files import read_bytes

LOOPBACK = ("127.0.0.1", "localhost")
KEY = "MGM_SERVE_KEY"  # in the environment
SHORTEST = 16  # characters of a key
LAST_PORT = 65_535


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `serve`."""
    base_flags(parser, repeatable=True)
    parser.add_argument("--host", default="127.0.0.1", help="(127.0.0.1); another one needs a key")
    parser.add_argument("--port", type=port, default=8000, help="(8000); 0 takes a free one")
    parser.add_argument(
        "--key-file", type=Path, help=f"whose first line clients must send as Bearer; or the variable {KEY}"
    )
    parser.add_argument("--batch-size", type=at_least_one, **as_flag(Asked, "batch_size"))
    for flag, default, about in (
        ("--queue", 64, "requests that may wait beside those that are answered; one more gets status 429"),
        ("--timeout", 120, "seconds of a request"),
        ("--max-new-tokens", 1024, "of an answer"),
        ("--max-body-mib", 32, "of a request's body"),
        ("--max-megapixels", 64, "of an image"),
    ):
        parser.add_argument(flag, type=at_least_one, default=default, help=f"{about} ({default})")
    parser.set_defaults(run=serve)


def port(text: str) -> int:
    """A number that a port can have."""
    if from_zero(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is more than {LAST_PORT}, the last port")
    return int(text)


def key_of(arguments: argparse.Namespace) -> str:
    """The key of the file or the environment, "" for none; UserError, which does not show it, for one that is
    short or has characters that no header has, and for none where the host is not loopback."""
    key, source = os.environ.get(KEY, ""), KEY
    if arguments.key_file:
        source = str(arguments.key_file)
        lines = read_bytes(arguments.key_file, 1 << 12).decode(errors="replace").splitlines()
        key = lines[0].strip() if lines else ""
        if not key:
            raise UserError(f"{source} holds no key in its first line")
    if key and not (len(key) >= SHORTEST and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{source} holds a key that is shorter than {SHORTEST} characters or has odd ones")
    if not key and arguments.host not in LOOPBACK:
        raise UserError(
            f"--host {arguments.host} can be reached by others: name a --key-file, or set {KEY}, or serve on "
            "127.0.0.1"
        )
    return key


def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; what is under way then is answered first. UserError when the model
    fails."""
    a, key, base = arguments, key_of(arguments), base_of(arguments)
    names = [name_of(folder) for folder in a.model]
    if len(set(names)) < len(names):
        raise UserError(f"two models are called {max(names, key=names.count)}: rename one of the folders")
    if base and len(names) > 1:
        raise UserError(
            "--llm, --clip and --convnext are for one model: fold the adapters with `train merge`"
        )
    listener = socket.create_server((a.host, a.port))
    import uvicorn

    from toolkit.serve.app import Limits, application
    from toolkit.serve.engine import Engine
    from toolkit.serve.worker import processes

    loads = [partial(answerer, folder, base, "auto", a.batch_size, a.quantize) for folder in a.model]
    limits = Limits(a.max_body_mib << 20, a.max_megapixels * 1_000_000, a.max_new_tokens, a.timeout, a.queue)
    with processes(loads, a.max_new_tokens) as workers:

        def stop() -> None:
            server.should_exit = True

        models = {name: prompts for name, (_, prompts, _) in zip(names, workers, strict=True)}
        engines = {
            name: Engine(pipe, a.batch_size, stop) for name, (pipe, *_) in zip(names, workers, strict=True)
        }
        app = application(models, engines, limits, key, list(LOOPBACK))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=a.timeout + 10,
            )
        )
        host, port = listener.getsockname()[:2]
        device = workers[0][2]
        print(f"{', '.join(names)} on http://{host}:{port} ({device}, {a.batch_size} at once)", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
    for name, engine in engines.items():
        if engine.failure:
            advice = "if memory was short, lower --batch-size or --max-new-tokens"
            raise UserError(f"{name} failed ({engine.failure}): {advice}")
