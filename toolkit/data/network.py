"""The network while a recipe runs: refused, but for what the user has asked to be reached."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# taken when `juicer` is imported, before anything is refused: what a recipe names is imported later
_resolve, _connect = socket.getaddrinfo, super(socket.socket, socket.socket).connect


@contextmanager
def refused() -> Iterator[None]:
    """A connection, and the resolution of a name, raises OSError."""

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse(address)
        _connect(self, address)

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        raise OSError(f"a recipe fetches nothing, but {address} was asked for: name a local file or model")

    with _in_place(refuse, connect):
        yield


@contextmanager
def online() -> Iterator[None]:
    """Inside `refused()`: the whole network again."""
    with _in_place(_resolve, _connect):
        yield


@contextmanager
def reachable(host: str, port: int) -> Iterator[None]:
    """One host and port, also inside `refused()`."""
    before_resolve, before_connect = socket.getaddrinfo, socket.socket.connect
    addresses: set[tuple[Any, ...]] = set()

    def resolve(name: Any, service: Any, *args: Any, **kwargs: Any) -> list:
        if (name, service) != (host, port):
            return before_resolve(name, service, *args, **kwargs)
        entries = _resolve(name, service, *args, **kwargs)
        addresses.update(entry[4][:2] for entry in entries)
        return entries

    def connect(self: socket.socket, address: Any) -> None:
        known = self.family != socket.AF_UNIX and address[:2] in addresses
        (_connect if known else before_connect)(self, address)

    with _in_place(resolve, connect):
        yield


@contextmanager
def _in_place(resolve: Any, connect: Any) -> Iterator[None]:
    """Let sockets use these two."""
    before, inherited = socket.getaddrinfo, "connect" not in vars(socket.socket)
    before_connect = socket.socket.connect
    socket.getaddrinfo = resolve
    socket.socket.connect = connect  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo = before
        if inherited:
            del socket.socket.connect
        else:
            socket.socket.connect = before_connect  # type: ignore[method-assign]
