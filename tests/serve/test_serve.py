"""The server over real HTTP: the evaluation's answers, whoever joins or leaves; limits; hostile clients."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import endpoint_tools
import httpx
import openai
import pytest
from PIL import Image
from test_data_synthesize import synthesize_arguments
from tiny_data import seed_set
from tiny_server import LIMITS, NAME, body, events, png, serving

from toolkit.__main__ import main
from toolkit.ask import MGM
from toolkit.data.engine import juicer
from toolkit.data.samples import caption_of
from toolkit.files import read_yaml
from toolkit.images import load
from toolkit.mgm import checkpoint
from toolkit.mgm.answer import Answerer
from toolkit.mgm.generate import Greedy
from toolkit.mgm.room import Need
from toolkit.mgm.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder) as served:
        yield served


@pytest.fixture(scope="module")
def alone(folder, asked):
    """What each question is answered alone, with 12 tokens at most."""
    return Answerer(folder, "cpu", 1).answer(asked.messages, asked.images, 12)


def until(condition) -> None:
    """Wait for what must come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def held(monkeypatch):
    """While it is cleared, the model makes no token."""
    event, step = threading.Event(), Greedy._pass
    event.set()

    def waiting(self, slots, new):
        event.wait(60)
        return step(self, slots, new)

    monkeypatch.setattr(Greedy, "_pass", waiting)
    yield event
    event.set()


def test_a_port_that_does_not_exist_is_wrong_usage(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--model", "x", "--port", "65536"])
    assert "65536 is more than 65535" in capsys.readouterr().err


def test_64_at_once_are_answered_as_the_evaluation_does(served, asked, alone):
    def ask(number):
        request = body(asked.messages[number], asked.files[number], stream=number % 2 == 0)
        if number % 2:
            reply = served.client.post(URL, json=request)
            assert reply.status_code == 200
            choice = reply.json()["choices"][0]
            return choice["message"]["content"], choice["finish_reason"]
        with served.client.stream("POST", URL, json=request) as reply:
            values = events(reply.iter_lines())
        assert values[-1] == "[DONE]" and values[0]["choices"][0]["delta"]["role"] == "assistant"
        choices = [value["choices"][0] for value in values[:-1]]
        return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]

    again = served.engine.again
    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(ask, range(64)))
    assert [text for text, _ in replies] == alone
    assert len(set(alone)) > 40 and served.engine.again > again
    assert {reason for _, reason in replies} <= {"stop", "length"}


def test_a_gpu_with_room_for_few_answers_all(folder, asked, alone, monkeypatch):
    monkeypatch.setattr(Greedy, "room", lambda self: 0)
    monkeypatch.setattr(Need, "fitting", lambda self, most, room: 3)
    requests = [body(asked.messages[number], asked.files[number]) for number in range(8)]
    with serving(folder) as small, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda request: small.client.post(URL, json=request).json(), requests))
    assert [reply["choices"][0]["message"]["content"] for reply in replies] == alone[:8]


def test_a_new_request_joins_while_others_are_answered(served, asked, monkeypatch):
    allowed, step = threading.Semaphore(3), Greedy._pass  # passes that the model may make
    begun = []

    def counted(self, slots, new):
        begun.append(slots)
        allowed.acquire(timeout=60)
        return step(self, slots, new)

    monkeypatch.setattr(Greedy, "_pass", counted)
    with (
        ThreadPoolExecutor(1) as pool,
        served.client.stream("POST", URL, json=body("what?", stream=True, max_tokens=200)) as long,
    ):
        lines = long.iter_lines()
        first = next(lines)
        while len(begun) < 4:  # the fourth waits
            time.sleep(0.01)
        request = body(asked.messages[0], asked.files[0], max_tokens=2)
        short = pool.submit(served.client.post, URL, json=request)
        while not served.engine.waiting:
            time.sleep(0.01)
        allowed.release(20)  # enough for the short answer, not for the long one
        assert first.startswith("data: ") and short.result().json()["usage"]["completion_tokens"] <= 2
        assert served.engine.running == 1
        allowed.release(1000)
        assert events(lines)[-1] == "[DONE]"


def test_the_official_client(served, asked, alone):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as absent:
        client.models.retrieve("other")
    assert absent.value.code == "model_not_found"
    request = body(asked.messages[0], asked.files[0])
    reply = client.chat.completions.create(**request)
    assert reply.choices[0].message.content == alone[0] and reply.usage.completion_tokens <= 12
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**request, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == alone[0]
    assert chunks[-1].usage == reply.usage
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(**request, tools=[])
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(**request | {"model": "gpt-4o"})
    assert error.value.code == "model_not_found"


def test_a_conversation_and_usage(served, folder, asked):
    answerer = Answerer(folder, "cpu", 1)
    picture = body("what is this?", asked.files[0])["messages"][0]
    turns = [picture, {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "red or blue?"}]
    reply = served.client.post(URL, json=body("", messages=turns)).json()
    prompt = answerer.conversation(["what is this?", "a dog", "red or blue?"], "image", [0])
    tokens = len(prompt.before) + len(prompt.after) + answerer.model.tokens_per_image
    assert reply["usage"]["prompt_tokens"] == tokens
    assert reply["usage"]["total_tokens"] == tokens + reply["usage"]["completion_tokens"]
    assert reply["model"] == NAME and reply["object"] == "chat.completion"
    message = reply["choices"][0]["message"]
    assert message.keys() == {"role", "content", "refusal"} and message["refusal"] is None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with served.client.stream("POST", URL, json=body("", messages=turns, **options)) as stream:
        values = events(stream.iter_lines())
    assert values[-2]["usage"] == reply["usage"] and values[-2]["choices"] == []
    text = "".join(value["choices"][0]["delta"].get("content", "") for value in values[:-2])
    assert text == reply["choices"][0]["message"]["content"] != ""


def test_drawing_and_fields_without_effect(served):
    def ask(**fields):
        reply = served.client.post(URL, json=body("what is this red dog?", **fields))
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"]

    greedy = ask()
    assert (
        ask(temperature=0, n=1, user="me", frequency_penalty=0, seed=None, max_completion_tokens=12) == greedy
    )
    drawn = [ask(temperature=2, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and greedy not in drawn


BOMB = png(Image.new("1", (10_000, 10_000)))


@pytest.mark.parametrize(
    ("request_body", "status", "said"),
    [
        ("{", 400, "not valid JSON"),
        ("[]", 400, "the body: an object is expected"),
        ('{"messages": [], "messages": []}', 400, "the key messages is there twice"),
        ("[" * 100_000, 400, "nested more than 100 deep"),
        ({"messages": []}, 400, "messages: "),
        (body("hi", tools=[]), 400, "tools is not supported"),
        (body("hi", n=2), 400, "n: "),
        (body("hi", max_tokens=201), 400, "at most 200 are made"),
        (body("hi", max_tokens="3"), 400, "max_tokens: "),
        (body("hi", temperature=2.5), 400, "temperature: "),
        (body("hi", temperature=1, seed=-1), 400, "seed is -1"),
        (body("hi", model="gpt-4o"), 404, f"'gpt-4o' is not served here, but {NAME}"),
        (body(""), 400, "messages.0 has no text"),
        (body("", messages=[{"role": "system", "content": "be kind"}]), 400, "messages.0.role"),
        (body("", messages=[{"role": "assistant", "content": "hi"}]), 400, "must alternate"),
        (body("what is <image>?"), 400, "contains <image>"),
        (body("word " * 300), 400, "the model reads 256"),
        (body("hi", b"no image"), 400, "the image cannot be read: it is none of JPEG"),
        (body("hi", png(Image.effect_noise((50, 50), 90))[:900]), 400, "the image cannot be read"),
        (body("hi", BOMB), 400, "10000 x 10000 pixels, at most 100000 are read"),
        (body("hi", png(Image.new("RGB", (900, 2)))), 400, "more than 50 times as long as wide"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_named(served, request_body, status, said):
    content = request_body if isinstance(request_body, str) else json.dumps(request_body)
    reply = served.client.post(URL, content=content, headers={"Content-Type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == status and said in error["message"], error
    assert error["type"] == "invalid_request_error" and error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,AA*A",
        "data:image/png;base64,AAAé",
        "data:image/svg+xml;base64,PHN2Zy8+",
    ],
)
def test_no_address_is_fetched(served, url):
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]
    reply = served.client.post(URL, json=body("", messages=messages))
    assert reply.status_code == 400 and reply.json()["error"]["code"] in (
        "invalid_image_url",
        "invalid_image",
    )


def test_several_images_of_one_turn_and_of_later_ones(served, folder, asked):
    model = MGM(Answerer(folder, "cpu", 1))
    first, second = (body("is it red?", file)["messages"][0]["content"] for file in asked.files[:2])
    one_turn = [{"role": "user", "content": [*first, second[1]]}]
    assert [part["type"] for part in one_turn[0]["content"]] == ["text", "image_url", "image_url"]
    reply = served.client.post(URL, json=body("", messages=one_turn)).json()
    assert reply["choices"][0]["message"]["content"] == model.answer(asked.images[:2], "is it red?", 12)
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "a dog"}]
    turns.append({"role": "user", "content": second})
    later = served.client.post(URL, json=body("", messages=turns)).json()
    prompt = model.answerer.conversation(["is it red?", "a dog", "is it red?"], "images", [0, 2])
    tokens = len(prompt.before) - 1 + 2 * model.answerer.tokens_per_image + len(prompt.after)
    assert later["usage"]["prompt_tokens"] == tokens
    one_turn[0]["content"] = [*first, *(second[1:] * 40)]
    refused = served.client.post(URL, json=body("", messages=one_turn))
    assert refused.status_code == 400 and "41 images take" in refused.json()["error"]["message"]


def test_a_huge_body_is_refused_and_not_kept(served):
    reply = served.client.post(URL, content=b" " * (100 << 20), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413
    assert reply.json()["error"]["message"] == f"the body has {100 << 20} bytes, at most {1 << 20} are read"
    chunks = (b" " * (1 << 16) for _ in range(64))  # of a length that is not announced
    assert served.client.post(URL, content=chunks).status_code == 413


def test_routes(served):
    client = served.client
    assert client.get("/health").json() == {"status": "ok", "model": NAME}
    assert client.get("/v1/models").json()["data"][0]["id"] == NAME
    for reply, status in ((client.get("/nothing"), 404), (client.get(URL), 405)):
        assert reply.status_code == status and reply.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert client.post(URL, content=json.dumps(body("hi"))).status_code == 415
    typed = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(URL, content=json.dumps(body("hi", max_tokens=1)), headers=typed).status_code == 200
    before = numbers(client)
    assert client.post(URL, json=body("hi", max_tokens=3)).status_code == 200
    until(lambda: numbers(client)["mgm_requests_under_way"] == 0)
    after = numbers(client)
    assert after['mgm_requests_total{status="200"}'] == before['mgm_requests_total{status="200"}'] + 1
    assert after["mgm_request_seconds_count"] == before["mgm_request_seconds_count"] + 1
    assert 0 < after["mgm_generated_tokens_total"] - before["mgm_generated_tokens_total"] <= 3
    assert after["mgm_first_token_seconds_sum"] <= after["mgm_request_seconds_sum"]


def numbers(client) -> dict[str, float]:
    """The metrics, each line in Prometheus' format."""
    lines = client.get("/metrics").text.splitlines()
    assert all(
        re.fullmatch(r'# TYPE \w+ (counter|gauge|summary)|\w+(\{status="\d+"\})? [\d.]+', line)
        for line in lines
    )
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#"}


def test_a_cut_connection_frees_its_slot(folder, held):
    with serving(folder, 1, queue=4) as served:
        for stream in (True, False):
            request = json.dumps(body("what is this?", stream=stream, max_tokens=200)).encode()
            cut = [connected(served.url, request) for _ in range(2)]
            until(lambda: served.engine.running == 1 and served.engine.waiting == 1)
            held.clear()
            for connection in cut:
                connection.close()
            until(lambda: numbers(served.client)["mgm_requests_under_way"] == 0)
            held.set()
            until(lambda: served.engine.running == 0)
            assert served.client.post(URL, json=body("hi", max_tokens=3)).status_code == 200
        assert served.engine.generated < 200


def connected(url: str, request: bytes) -> socket.socket:
    """A connection that has sent a chat request and reads nothing."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
    return connection


def test_a_slow_reader_holds_nobody_up(folder):
    with serving(folder, 2) as served:
        slow = connected(served.url, json.dumps(body("what?", stream=True, max_tokens=200)).encode())
        until(lambda: served.engine.running == 1)
        for _ in range(3):
            assert served.client.post(URL, json=body("hi", max_tokens=3)).status_code == 200
        until(lambda: served.engine.running == 0)  # nothing was read and the slot is free
        received = b""
        while b"[DONE]" not in received:
            part = slow.recv(64)
            assert part
            received += part
        slow.close()


def test_a_full_queue_and_a_late_answer(folder, held):
    with serving(folder, 1, queue=1, seconds=1.0) as served, ThreadPoolExecutor(2) as pool:
        held.clear()
        late = [pool.submit(served.client.post, URL, json=body("what?", stream=n == 0)) for n in range(2)]
        until(lambda: numbers(served.client)["mgm_requests_under_way"] == 2)
        refused = served.client.post(URL, json=body("hi"))
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        for reply in late:
            assert reply.result().status_code == 504
            assert reply.result().json()["error"]["code"] == "timeout"
        held.set()
        assert served.client.post(URL, json=body("hi", max_tokens=3)).status_code == 200


def test_each_model_has_a_queue_of_its_own(folder, second, held):
    with serving({NAME: folder, "other": second}, 1, queue=1) as served, ThreadPoolExecutor(4) as pool:
        held.clear()

        def ask(model: str):
            return served.client.post(URL, json=body("hi", max_tokens=2) | {"model": model})

        first = [pool.submit(ask, NAME) for _ in range(2)]
        until(lambda: numbers(served.client)["mgm_requests_under_way"] == 2)
        assert ask(NAME).status_code == 429
        second_ones = [pool.submit(ask, "other") for _ in range(2)]
        until(lambda: numbers(served.client)["mgm_requests_under_way"] == 4)
        assert ask("other").status_code == 429
        held.set()
        assert [reply.result().status_code for reply in (*first, *second_ones)] == [200] * 4
        assert ask(NAME).status_code == 200


def test_a_stream_that_takes_too_long_ends_with_an_error(folder, held):
    with serving(folder, 1, seconds=2.0) as served:
        with served.client.stream("POST", URL, json=body("what?", stream=True, max_tokens=200)) as reply:
            lines = reply.iter_lines()
            next(lines)
            held.clear()
            values = events(lines)
        assert values[-1]["error"]["code"] == "timeout" and "[DONE]" not in values
        held.set()


def test_a_model_that_fails_ends_the_server(folder, monkeypatch, capsys):
    def broken(self, slots, new):
        raise RuntimeError("out of memory")

    with serving(folder, 2) as served:
        monkeypatch.setattr(Greedy, "_pass", broken)
        reply = served.client.post(URL, json=body("hi"))
        assert reply.status_code == 500 and "out of memory" not in reply.text
        until(lambda: served.server.should_exit)
        assert served.engine.failure == "out of memory"
    assert "the model failed: out of memory" in capsys.readouterr().err


def test_the_key(folder):
    key = "0123456789abcdef-key"
    with serving(folder, 1, key=key) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": key}):
            for reply in (
                served.client.post(URL, json=body("hi"), headers=headers),
                served.client.get("/metrics", headers=headers),
                served.client.get("/v1/models", headers=headers),
            ):
                assert reply.status_code == 401 and key not in reply.text
                assert reply.json()["error"]["type"] == "authentication_error"
        assert served.client.get("/health").status_code == 200
        for scheme in ("Bearer", "bearer"):  # of any case (RFC 9110, 11.1)
            right = {"Authorization": f"{scheme} {key}"}
            assert served.client.post(URL, json=body("hi", max_tokens=2), headers=right).status_code == 200


def test_several_models_are_listed_and_asked_by_name(folder, second):
    with serving({NAME: folder, "other": second}, 2) as served:
        client = served.client
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [NAME, "other"]
        assert client.get("/health").json() == {"status": "ok", "model": f"{NAME}, other"}
        request = body("what is this?")
        by_name = {}
        for name, path in ((NAME, folder), ("other", second)):
            reply = client.post(URL, json=request | {"model": name}).json()
            by_name[name] = reply["choices"][0]["message"]["content"]
            assert reply["model"] == name
            assert by_name[name] == Answerer(path, "cpu", 1).answer(["what is this?"], [None], 12)[0]
        assert by_name[NAME] != by_name["other"]
        unnamed = client.post(URL, json={key: value for key, value in request.items() if key != "model"})
        assert unnamed.json()["model"] == NAME
        assert numbers(client)["mgm_slots"] == 4


def test_answers_that_no_memory_holds_end_the_server_at_its_start(folder, capsys):
    command = ["serve", "--model", str(folder), "--port", "0", "--max-new-tokens", "1000000000000"]
    assert main(command) == 1
    assert "tokens at once do not fit into the memory: lower" in capsys.readouterr().err


def test_two_models_of_one_name_are_refused(folder, parts, capsys):
    command = ["serve", "--model", str(folder), "--model", str(folder), "--port", "0"]
    assert main(command) == 1
    assert f"two models are called {NAME}: rename" in capsys.readouterr().err
    base = ["--llm", str(parts.llm), "--clip", str(parts.clip), "--convnext", str(parts.convnext)]
    assert main(["serve", "--model", str(folder), "--model", str(parts.llm), *base]) == 1
    assert "are for one model" in capsys.readouterr().err


def test_the_command_refuses_to_be_reached_without_a_key(tmp_path, capsys, monkeypatch):
    command = ["serve", "--model", str(tmp_path)]
    monkeypatch.delenv("MGM_SERVE_KEY", raising=False)
    assert main([*command, "--host", "0.0.0.0"]) == 1
    assert "--host 0.0.0.0 can be reached by others: name a --key-file" in capsys.readouterr().err
    (tmp_path / "key").write_text("short secret\n")
    assert main([*command, "--key-file", str(tmp_path / "key")]) == 1
    assert "secret" not in (said := capsys.readouterr().err) and "shorter than 16" in said


@contextmanager
def command_running(folder, key_file) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    """`python -m toolkit serve`, and a client with its key."""
    key_file.write_text("0123456789abcdef-key\n")
    command = [sys.executable, "-m", "toolkit", "serve", "--model", str(folder), "--port", "0"]
    command += ["--key-file", str(key_file), "--max-new-tokens", str(LIMITS["new_tokens"])]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            assert "0123456789abcdef" not in line
            url = re.search(r"http://127\.0\.0\.1:\d+", line).group()
            headers = {"Authorization": "Bearer 0123456789abcdef-key"}
            with httpx.Client(base_url=url, timeout=60, trust_env=False, headers=headers) as client:
                yield process, client
        finally:
            process.kill()


LONG = body("what is this?", stream=True, max_tokens=200, temperature=2, seed=1)


def test_sigterm_lets_what_is_under_way_end(folder, tmp_path):
    with command_running(folder, tmp_path / "key") as (process, client):
        with client.stream("POST", URL, json=LONG) as reply:
            lines = reply.iter_lines()
            next(lines)
            for number in (process.pid, *children(process)):  # as a service manager sends it
                os.kill(number, signal.SIGTERM)
            assert events(lines)[-1] == "[DONE]"
        with pytest.raises(httpx.TransportError):
            while True:  # a fast answer ends before the server has seen the signal
                client.post(URL, json=LONG)
        assert process.wait(60) == 0
        assert "0123456789abcdef" not in process.stdout.read()


def test_a_model_whose_process_is_killed_ends_the_server(folder, tmp_path):
    with command_running(folder, tmp_path / "key") as (process, client):
        with client.stream("POST", URL, json=LONG) as reply:
            lines = reply.iter_lines()
            next(lines)
            for number in children(process):
                os.kill(number, signal.SIGKILL)
            assert events(lines)[-1]["error"]["type"] == "server_error"
        assert process.wait(60) == 1
        assert f"{NAME} failed (its process ended)" in process.stdout.read()


def children(process: subprocess.Popen) -> list[int]:
    """Processes that it has started, but for multiprocessing's own."""
    numbers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {int(number): Path(f"/proc/{number}/cmdline").read_bytes() for number in numbers}
    return [number for number, command in commands.items() if b"resource_tracker" not in command]


def test_the_captioning_operator_asks_it_as_any_endpoint(served, asked, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    number = 6  # whose answer ends by itself: one that is cut off is no caption
    (tmp_path / "a.png").write_bytes(asked.files[number])
    with juicer.offline():
        captions, _ = endpoint_tools.run(
            "endpoint_captioning_mapper",
            ["old"],
            [tmp_path / "a.png"],
            model=NAME,
            prompt=asked.messages[number],
            parameters={"max_tokens": 12, "temperature": 0},
        )
    assert captions == ["old", alone[number]]


def test_the_model_of_a_round_captions_the_next(second, tmp_path, monkeypatch):
    """The shipped recipe and a served model that speaks as the world does, though its projector is untrained;
    the same data from the kept answers, without server and key; and a model trained anew under its name."""
    zoo = ROOT / "toolkit/world/zoo"
    model = checkpoint.build(
        zoo / "gemma", zoo / "clip", zoo / "convnext", seed=2, image_size_aux=128, model_max_length=256
    )
    checkpoint.save_checkpoint(model, tmp_path / "model", load_tokenizer(zoo / "gemma", 256))
    process = read_yaml(ROOT / "solution/recipes/own_captions.yaml")["process"]
    asked = process[2]["endpoint_captioning_mapper"]
    process[-1]["batched_similarity_filter"]["min_score"] = -1.0  # no caption of such a model fits
    rows = seed_set(tmp_path, 24)
    monkeypatch.chdir(tmp_path)

    def synthesized(name: str) -> bytes:
        (tmp_path / name).mkdir(exist_ok=True)
        recipe, clip = json.dumps({"process": process}), f"clip={zoo / 'clip'}"  # JSON is YAML
        arguments = synthesize_arguments(tmp_path, recipe, rows, tmp_path / name, "--model", clip)
        assert main(["data", "synthesize", *map(str, arguments)]) == 0
        return (tmp_path / name / "out.jsonl").read_bytes()

    with serving({"first": second, asked["model"]: tmp_path / "model"}) as served:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        written = synthesized("asked")
    images = [load(tmp_path / row["images"][0]) for row in rows]
    answers = Answerer(tmp_path / "model", "cpu", 1).answer([asked["prompt"]] * 24, images, 32)
    captions = [caption_of(json.loads(line)["text"]) for line in written.splitlines()]
    assert captions == answers and len(set(answers)) > 1
    monkeypatch.delenv("OPENAI_API_KEY")
    assert synthesized("again") == written
    with serving({asked["model"]: second}) as served:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        assert synthesized("asked") == written  # its name is the old one's
        asked["responses"] = "responses/anew.jsonl"
        assert synthesized("asked") != written
