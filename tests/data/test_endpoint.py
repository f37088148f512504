"""The chat client against a server that misbehaves: what is tried again, what is not, what is kept, and what
nobody gets to see."""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
from chat_server import KEY, Server, completion, cut_off, dripping, huge, replies, serving, slow
from tiny_data import picture

from toolkit.data import endpoint, network
from toolkit.data.endpoint import Endpoint, connection, digest, message, responses, tokens_of
from toolkit.data.endpoint.responses import Answer
from toolkit.data.engine import juicer
from toolkit.errors import UserError


def body(number: int) -> dict:
    return {"model": "m", "max_tokens": 9, "messages": [message(f"question {number}")]}


def client(folder: Path, **arguments) -> Endpoint:
    given = {
        "price_input": 1.0,
        "price_output": 1.0,
        "max_cost": 1.0,
        "requests_per_minute": 1e6,
        "retries": 3,
    } | arguments
    return Endpoint("asking", folder / "responses" / "x.jsonl", **given)


def test_answers_come_in_order_are_kept_and_asked_for_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, another = itertools.count(), threading.Event()

    def answer(asked: dict) -> str:
        number = int(asked["messages"][0]["content"].split()[1])
        if next(begun) == 0 or number == 0:
            another.wait(300)  # neither the first to come nor the first row is the first to be answered
        another.set()
        return f"answer {number}"

    server.answer = answer
    expected = [Answer(f"answer {number % 10}", None, (11, 3)) for number in range(12)]
    assert client(tmp_path).complete(12, lambda number: body(number % 10)) == expected
    assert len(server.bodies) == 10 and 1 < server.busiest <= 4
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert {header["path"] for header in server.headers} == {"/v1/chat/completions"}

    file = tmp_path / "responses" / "x.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["key"] for line in lines] == sorted(digest(body(number)) for number in range(10))
    before = file.read_bytes()
    monkeypatch.delenv("OPENAI_API_KEY")  # neither key nor network is needed again
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    assert client(tmp_path).complete(12, lambda number: body(number % 10)) == expected
    assert file.read_bytes() == before and len(server.bodies) == 10


def test_the_bytes_of_the_file_do_not_depend_on_the_order_of_answers(server: Server, tmp_path: Path) -> None:
    client(tmp_path / "one", concurrency=1).complete(6, body)
    client(tmp_path / "two", concurrency=4).complete(4, lambda number: body(5 - number))
    client(tmp_path / "two").complete(6, body)
    assert (tmp_path / "one/responses/x.jsonl").read_bytes() == (
        tmp_path / "two/responses/x.jsonl"
    ).read_bytes()
    assert [path.name for path in (tmp_path / "two/responses").iterdir()] == ["x.jsonl"]


BAD = {
    "429": replies(429, {"error": {"message": "slow down"}}),
    "500": replies(500, b"oops", "text/plain"),
    "503": replies(503, b""),
    "cut off": cut_off,
    "slow": slow(0.6),
    "dripping": dripping,
    "huge": huge,
    "not JSON": replies(200, b'{"choices": [', "application/json"),
    "no JSON type": replies(200, completion("x"), "text/html"),
    "a list": replies(200, []),
    "empty choices": replies(200, {"choices": []}),
    "null": replies(200, completion(None)),
    "deep": replies(200, b"[" * 100_000, "application/json"),
}


# seconds; those that answer at once may take a minute on a slow machine
PATIENCE = {"slow": 0.4, "dripping": 0.4}


@pytest.mark.parametrize("name", BAD)
def test_what_may_pass_is_tried_again(name: str, server: Server, tmp_path: Path) -> None:
    server.script = [BAD[name], BAD[name]]
    # a good answer may be late too
    patience = {"timeout": PATIENCE[name], "retries": 30} if name in PATIENCE else {}
    assert client(tmp_path, **patience).complete(1, body) == [
        Answer("a caption from the server", None, (11, 3))
    ]
    assert not server.script and (len(server.bodies) == 3 or name in PATIENCE)
    assert not server.dripped


@pytest.mark.parametrize(
    ("name", "said"),
    [("500", "HTTP 500"), ("cut off", "broke off"), ("slow", "no answer within"), ("huge", "more than")],
)
def test_what_does_not_pass_ends_the_run_and_keeps_what_was_answered(
    name: str, said: str, server: Server, tmp_path: Path
) -> None:
    client(tmp_path).complete(2, body)
    server.script = [BAD[name]] * 9
    with pytest.raises(UserError, match=f"in 3 tries, the last time: .*{said}"):
        client(tmp_path, timeout=PATIENCE.get(name, 60.0), retries=2, concurrency=1).complete(3, body)
    assert len(server.bodies) == 5
    assert len(responses.read(tmp_path / "responses/x.jsonl")) == 2


def test_an_answer_that_stays_empty_is_kept_as_such(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: "  " if "question 1" in asked["messages"][0]["content"] else "good"
    found = client(tmp_path, retries=1).complete(3, body)
    assert [answer.text for answer in found] == ["good", None, "good"] and found[
        1
    ].problem == "an answer without text"
    count = len(server.bodies)
    assert client(tmp_path).complete(3, body) == found and len(server.bodies) == count == 4


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            replies(200, completion("half a sen", finish_reason="length")),
            "cut off at the most tokens allowed",
        ),
        (replies(200, completion("", finish_reason="content_filter")), "filtered by the endpoint"),
        (replies(400, {"error": {"code": "content_filter", "message": "no"}}), "filtered by the endpoint"),
    ],
)
def test_what_is_about_one_row_is_no_failure(
    step: Callable, problem: str, server: Server, tmp_path: Path
) -> None:
    server.script = [step]
    first, second = client(tmp_path, concurrency=1).complete(2, body)
    assert (first.text, first.problem, second.text) == (None, problem, "a caption from the server")
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (replies(401, {"error": {"message": f"wrong key {KEY}"}}), "refuses the key"),
        (
            replies(404, {"error": {"message": f"no model m for {KEY}"}}),
            r"HTTP 404\): no model m for \[key\]",
        ),
        (replies(429, {"error": {"code": "insufficient_quota"}}), "no credit"),
        (replies(302, b"", Location="http://127.0.0.1:1/steal"), "redirects"),
        (
            replies(400, {"error": {"code": ["content_filter"], "message": {"a": 1}}}),
            r"refuses a request \(HTTP 400\): \{'a': 1\}",
        ),
        (replies(400, {"error": {"code": {}, "message": None}}), "refuses a request"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    step: Callable, said: str, server: Server, tmp_path: Path
) -> None:
    server.script = [step]
    with pytest.raises(UserError, match=said):
        client(tmp_path, concurrency=1).complete(5, body)
    assert len(server.bodies) == 1 and not (tmp_path / "responses/x.jsonl").exists()


def test_a_redirect_to_another_host_is_not_followed(server: Server, tmp_path: Path) -> None:
    with serving() as other:
        server.script = [replies(307, b"", Location=f"{other.url}/chat/completions")]
        with pytest.raises(UserError, match="redirects"):
            client(tmp_path).complete(1, body)
        assert other.bodies == []


def test_retry_after_holds_all_requests(server: Server, tmp_path: Path) -> None:
    server.script = [replies(429, b"", Retry_After="3")]
    client(tmp_path, concurrency=1).complete(3, body)
    # not each of them
    assert server.times[1] - server.times[0] >= 2.95 and server.times[3] - server.times[1] < 2.95
    server.script = [replies(429, b"", Retry_After="86400")]
    with pytest.raises(UserError, match="86400 s of patience"):
        client(tmp_path).complete(4, body)


def test_waits_grow_from_try_to_try(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.1)
    server.script = [replies(500, b"")] * 3
    client(tmp_path).complete(1, body)
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert [gap >= wait for gap, wait in zip(gaps, (0.1, 0.2, 0.4), strict=True)] == [True] * 3 and gaps[
        2
    ] < 20


def test_requests_are_held_to_a_rate(server: Server, tmp_path: Path) -> None:
    begin = time.monotonic()
    client(tmp_path, requests_per_minute=600, concurrency=8).complete(6, body)
    assert server.times[-1] - begin >= 0.5  # five intervals of 0.1 s


def test_a_refused_connection_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match="4 tries, the last time: no connection"):
        client(tmp_path).complete(1, body)


def test_cost_is_estimated_before_anything_is_sent(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"may cost 170\.0000, max_cost is 169\.0"):
        client(tmp_path, price_input=0, price_output=1e6 * 170 / 90, max_cost=169.0).complete(10, body)
    assert server.bodies == [] and "10 new requests, about 70 tokens" in capsys.readouterr().err
    assert not (tmp_path / "responses/x.jsonl").exists()
    asking = client(tmp_path, price_input=0, price_output=1e6 / 9, max_cost=3.5)
    asking.complete(3, body)
    with pytest.raises(UserError, match=r"may cost 4\.0000"):  # three before, one now
        asking.complete(4, body)
    assert len(server.bodies) == 3
    assert "counted 33 and 9 tokens: 1.0000" in capsys.readouterr().err


def test_tokens_of_text_and_images(tmp_path: Path) -> None:
    assert tokens_of(body(1)) == (4 + 3, 9)  # 10 bytes
    for size, tiles in ((64, 1), (600, 4), (3000, 4)):
        picture(tmp_path / "x.jpg", 1, size)
        assert tokens_of({"max_tokens": 1, "messages": [message("four", tmp_path / "x.jpg")]}) == (
            4 + 1 + 85 + 170 * tiles,
            1,
        )


def test_no_key_and_no_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"x\.jsonl lacks 2 of the answers and OPENAI_API_KEY is not set"):
        client(tmp_path).complete(2, body)
    assert not (tmp_path / "responses").exists()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "http://user:word@host/v1",  # pragma: allowlist secret
        "no address",
        "http://host/v1?key=1",
        "http://[",
        "",
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match="OPENAI_BASE_URL is not an address") as error:
        client(tmp_path).complete(1, body)
    assert "word" not in str(error.value).replace("password", "")


def test_the_key_is_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    server.answer = lambda asked: f"your key is {KEY}"
    (answer,) = client(tmp_path).complete(1, body)
    assert answer.text == "your key is [key]"
    errors = []
    for step in (
        replies(400, {"error": {"message": KEY}}),
        replies(500, KEY.encode(), "text/plain"),
        replies(200, KEY.encode()),
    ):
        server.script = [step]
        with pytest.raises(UserError) as error:
            client(tmp_path, retries=0).complete(2, body)
        errors.append(error)
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\nX-More: 1")
    with pytest.raises(UserError, match="OPENAI_API_KEY has") as error:
        client(tmp_path).complete(2, body)
    errors.append(error)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert KEY not in "".join(f"{error.value!r} {error.value.__cause__!r}" for error in errors)
    out = capfd.readouterr()
    assert KEY not in out.out + out.err
    assert KEY not in repr(connection.Address.of_environment(1, tmp_path))
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


CHILD = """
import sys
from pathlib import Path
from test_endpoint import body, client
client(Path(sys.argv[1]), concurrency=2).complete(40, body)
"""


def test_half_an_answer_on_a_full_disk_is_an_error_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with responses.locked(tmp_path / "x.jsonl") as descriptor:
        responses.append(descriptor, "a", Answer("one"))
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
        with pytest.raises(OSError, match="disk is full"):
            responses.append(descriptor, "b", Answer("two"))
        monkeypatch.undo()
        responses.append(descriptor, "c", Answer("three"))
    assert responses.read(tmp_path / "x.jsonl") == {"a": Answer("one"), "c": Answer("three")}


def test_a_killed_run_loses_only_what_was_under_way(server: Server, tmp_path: Path) -> None:
    begun, killed = itertools.count(), threading.Event()
    server.answer = lambda asked: (next(begun) < 8 or killed.wait()) and "x" * 200
    child = forks.Fork([sys.executable, "-c", CHILD, tmp_path])
    file = tmp_path / "responses/x.jsonl"
    while len(server.bodies) < 10 or file.read_bytes().count(b"\n") < 8:  # two are under way
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    killed.set()
    kept = len(responses.read(file))
    assert kept == 8
    with file.open("ab") as handle:
        handle.write(b'{"key": "cut o')  # as if the kill had come in the middle of a line
    assert len(responses.read(file)) == kept
    before = len(server.bodies)
    assert before == 10
    assert [answer.text for answer in client(tmp_path).complete(40, body)] == ["x" * 200] * 40
    assert len(server.bodies) - before == 40 - kept
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert keys == sorted(keys) and len(keys) == 40


def test_two_runs_share_one_file(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: time.sleep(0.01) or "x"
    children = [forks.Fork([sys.executable, "-c", CHILD, tmp_path]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert len(server.bodies) == 40 == len(responses.read(tmp_path / "responses/x.jsonl"))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10**400, "completion_tokens": -3}, (0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": "x"}, (7, 0)),
        ([1], (0, 0)),
    ],
)
def test_any_usage_is_read(usage: dict | list, tokens: tuple, server: Server, tmp_path: Path) -> None:
    server.script = [replies(200, completion("a cat") | {"usage": usage})]
    assert client(tmp_path).complete(1, body)[0].tokens == tokens


@pytest.mark.parametrize(
    "value",
    ["Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 01 Jan 99999 00:00:00", "nan", "-1", "1e999", "abc", ""],
)
def test_any_retry_after_is_read(value: str, server: Server, tmp_path: Path) -> None:
    server.script = [replies(429, {}, **{"Retry-After": value})]
    assert client(tmp_path, retries=1).complete(1, body)[0].text == "a caption from the server"


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "c"}',
        '{"key": "c", "text": 5, "problem": null, "tokens": [1, 2]}',
        '{"key": "c", "text": "b", "problem": null, "tokens": [1, 2, 3]}',
        '{"key": "c", "text": "b", "text": "d", "problem": null, "tokens": [1, 2]}',
        '{"key": ["c"], "text": "b", "problem": null, "tokens": [1, 2]}',
        '{"key": "c", "text": "b", "problem": null, "tokens": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_answer_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "responses").mkdir()
    (tmp_path / "responses/x.jsonl").write_text(
        '{"key": "a", "text": "b", "problem": null, "tokens": [1, 2]}\n' + line + "\n"
    )
    with pytest.raises(UserError, match=r"x\.jsonl, line 2 is not a stored answer"):
        client(tmp_path).complete(1, body)


def test_only_the_endpoint_is_reached_while_a_recipe_runs(server: Server, tmp_path: Path) -> None:
    with juicer.offline():
        assert len(client(tmp_path).complete(2, body)) == 2
        with serving() as other:
            address = ("127.0.0.1", other.server_port)
            with network.reachable("127.0.0.1", server.server_port):
                socket.create_connection(("127.0.0.1", server.server_port)).close()
                with pytest.raises(OSError, match="a recipe fetches nothing"):
                    socket.create_connection(address)
                with socket.socket() as raw, pytest.raises(OSError, match="a recipe fetches nothing"):
                    raw.connect(address)
        with pytest.raises(OSError, match="a recipe fetches nothing"):  # refused again
            socket.create_connection(("127.0.0.1", server.server_port))
    socket.create_connection(("127.0.0.1", server.server_port)).close()
    assert "connect" not in vars(socket.socket)
