"""A server of this machine that serves files and a hub's API, and that misbehaves on request."""

import base64
import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REVISION = "0123456789abcdef0123456789abcdef01234567"
SMALL = 1000  # bytes of a file that a hub keeps in git


class Server(ThreadingHTTPServer):
    """files: path -> bytes, or a text as the address to go to. A file `owner/name/resolve/REVISION/FILE` is a
    hub's.

    cuts: path -> bytes after which the next answers end, one each. lengths: another Content-Length than the
    right one, "" for none. parts: path -> the first byte that a part claims to begin with. status: path ->
    [(code, headers)], the next answers. pause: seconds between blocks of 64 KiB. gated: repositories that
    want the token. requests: (method, path, Range). tokens: (path, Authorization).
    """

    daemon_threads = True
    handler: type[BaseHTTPRequestHandler]

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.handler)
        self.files, self.cuts, self.lengths, self.status, self.parts = {}, {}, {}, {}, {}
        self.requests, self.tokens, self.gated = [], [], {}
        self.ranges, self.pause, self.etags = True, 0.0, {}

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def gets(self):
        return [(path, given) for method, path, given in self.requests if method == "GET"]

    def add_repository(self, repository, revision=REVISION, **files):
        for name, body in files.items():
            self.files[f"{repository}/resolve/{revision}/{name}"] = body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        server, name = self.server, unquote(self.path[1:])
        given = self.headers.get("Range")
        server.requests.append((self.command, name, given))
        server.tokens.append((name, self.headers.get("Authorization")))
        self.close_connection = True
        if server.status.get(name) and not (head and "/resolve/" not in name):
            code, headers = server.status[name].pop(0)
            return self.plain(code, headers)
        owner = "/".join(name.removeprefix("api/models/").removeprefix("datasets/").split("/")[:2])
        if owner in server.gated and self.headers.get("Authorization") != f"Bearer {server.gated[owner]}":
            return self.plain(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if name.startswith("api/models/"):
            body = json.dumps({"id": owner, "sha": REVISION, "siblings": []}).encode()
            return self.plain(200, {"Content-Type": "application/json"}, body)
        if name not in server.files:
            missing = {"X-Error-Code": "EntryNotFound"} if "/resolve/" in name else {}
            return self.plain(404, missing)
        body = server.files[name]
        if isinstance(body, str):
            return self.plain(302, {"Location": body} | (self.hub(body, name) if "/resolve/" in name else {}))
        tag = server.etags.get(name, f'"{hashlib.sha256(body).hexdigest()}"')
        fresh = self.headers.get("If-Range") in (None, tag)
        start = int(given.removeprefix("bytes=").rstrip("-")) if given and server.ranges and fresh else 0
        if start and start >= len(body):
            return self.plain(416, {})
        self.send_response(206 if start else 200)
        length = server.lengths.get(name, str(len(body) - start))
        if length:
            self.send_header("Content-Length", length)
        if start:
            first = server.parts.get(name, start)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if tag:
            self.send_header("ETag", tag)
        for key, value in self.hub(body, name).items():
            self.send_header(key, value)
        self.end_headers()
        if head:
            return None
        cut = server.cuts.get(name)
        body = body[start : start + cut.pop(0) if cut else None]
        try:
            for position in range(0, len(body), 1 << 16):
                self.wfile.write(body[position : position + (1 << 16)])
                time.sleep(server.pause)
        except OSError:  # the client went away
            pass
        return None

    def end_headers(self):
        self.send_header("Connection", "close")
        super().end_headers()

    def hub(self, body, name):
        if "/resolve/" not in name:
            return {}
        actual = {"X-Repo-Commit": name.split("/resolve/")[1].split("/")[0]}
        if isinstance(body, bytes) and len(body) > SMALL:  # a large file's name is its checksum
            actual |= {
                "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Linked-Size": str(len(body)),
            }
        return actual

    def plain(self, code, headers, body=b""):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


Server.handler = Handler


class UploadHandler(Handler):
    """What huggingface_hub asks of a hub before, during and after an upload."""

    def do_GET(self):
        self.asked(b"")

    def do_POST(self):
        self.asked(self.rfile.read(int(self.headers["Content-Length"])))

    def do_PUT(self):
        name, length = self.path[1:], int(self.headers["Content-Length"])
        cut = self.server.cuts.get(name)
        body = self.rfile.read(min(length, cut.pop(0)) if cut else length)
        self.close_connection = True
        if len(body) == length:
            self.asked(body)

    def asked(self, body):
        server, (name, _, query) = self.server, self.path[1:].partition("?")
        server.requests.append((self.command, name, query))
        token = self.headers.get("Authorization")
        server.tokens.append((name, token))
        self.close_connection = True
        if server.status.get(name):
            return self.plain(*server.status[name].pop(0))
        if name.startswith("storage/"):
            server.stored[name.removeprefix("storage/")] = len(body)
            return self.plain(200, {})
        if name.startswith(("v1/", "v2/")):  # Xet's storage, whose chunks nobody looks into here
            server.chunks.append(name)
            known = name.startswith(("v1/xorbs/", "v1/shards"))
            return self.json({"was_inserted": True, "result": 1}) if known else self.plain(404, {})
        if token != f"Bearer {server.token}":
            return self.plain(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        return self.signed_in(name, body)

    def signed_in(self, name, body):
        server = self.server
        if name == "api/validate-yaml":
            text = json.loads(body)["content"]
            problems = [{"message": "license must be one of the hub's"}] if "license: none" in text else []
            return self.json({"errors": problems, "warnings": []}, 400 if problems else 200)
        if name == "api/repos/create":
            asked = json.loads(body)
            if asked["organization"] != server.owner:
                return self.plain(403, {"X-Error-Message": "no rights in this namespace"})
            repository = f"{asked['organization']}/{asked['name']}"
            server.create(repository, asked["visibility"] == "private")
            return self.json({"url": server.url(repository)})
        parts = name.removeprefix("api/models/").replace(".git/info/lfs", "").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in server.repositories:
            return self.plain(404, {"X-Error-Code": "RepoNotFound"})
        files = server.repositories[repository]
        match rest:
            case []:
                private = server.private[repository]
                return self.json({"id": repository, "sha": REVISION, "private": private, "siblings": []})
            case ["tree", revision]:
                if revision == REVISION:  # that of a commit
                    files = files | {path: tree_entry(body) for path, body in server.altered.items()}
                return self.json([{"type": "file", "path": path} | files[path] for path in sorted(files)])
            case ["preupload", _]:
                given = json.loads(body)["files"]
                modes = {True: "lfs", False: "regular"}
                answers = [
                    {"path": f["path"], "uploadMode": modes[f["size"] > SMALL], "shouldIgnore": False}
                    for f in given
                ]
                return self.json({"files": answers})
            case ["objects", "batch"]:
                objects = json.loads(body)["objects"]
                for item in objects:
                    if item["oid"] not in server.stored:
                        item["actions"] = {"upload": {"href": server.url(f"storage/{item['oid']}")}}
                return self.json({"transfer": "basic", "objects": objects})
            case ["xet-write-token", _]:
                address = server.url("").rstrip("/")
                return self.json({"casUrl": address, "accessToken": "xet", "exp": 1 << 40})
            case ["commit", _]:
                for line in map(json.loads, body.splitlines()):
                    self.committed(files, line["key"], line["value"])
                return self.json(
                    {"commitUrl": server.url(f"{repository}/commit/{REVISION}"), "commitOid": REVISION}
                )
        return self.plain(404, {})

    def committed(self, files, key, value):
        if key == "lfsFile":
            assert self.server.chunks or self.server.stored[value["oid"]] == value["size"]
            files[value["path"]] = large(value["oid"], value["size"])
        elif key == "file":
            files[value["path"]] = tree_entry(base64.b64decode(value["content"]))

    def json(self, value, code=200):
        self.plain(code, {"Content-Type": "application/json"}, json.dumps(value).encode())


def tree_entry(body):
    """What a hub lists of a file: small ones are kept in git."""
    if len(body) > SMALL:
        return large(hashlib.sha256(body).hexdigest(), len(body))
    return {"size": len(body), "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}


def large(sha256, size):
    return {"size": size, "oid": "0" * 40, "lfs": {"oid": sha256, "size": size, "pointerSize": 130}}


class UploadServer(Server):
    """A hub that takes uploads to repositories of `owner` from whoever has `token`.

    repositories: name -> {path: entry of its tree}. private: name -> whether. stored: SHA-256 -> bytes of
    the large files that arrived, committed or not. altered: path -> bytes that are listed after a commit
    instead. chunks: requests to Xet's storage. cuts: path of a PUT -> bytes after which it breaks off.
    """

    handler = UploadHandler

    def __init__(self):
        super().__init__()
        self.owner, self.token = "me", "hf_S3cretT0ken"
        self.repositories, self.private, self.altered = {}, {}, {}
        self.stored, self.chunks = {}, []

    def create(self, repository, private=True, **files):
        self.repositories[repository] = {".gitattributes": tree_entry(b"")} | {
            name: tree_entry(body) for name, body in files.items()
        }
        self.private[repository] = private


@contextmanager
def running(kind=Server):
    server = kind()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tar(**members):
    """A .tar.gz: name -> bytes, or -> a link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(**members):
    """A .zip: name -> bytes, or -> a link's target."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if isinstance(content, str) else 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()
