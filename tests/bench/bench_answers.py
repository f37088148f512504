"""Answers a second of an evaluation, on one GPU and on several, and of the server; time to the first token.

    PYTHONPATH=. python tests/bench/bench_answers.py [--gpus 1 4] [--questions 512]

The model has MGM-2B's size, random weights and the embedded world's tokenizer; without a GPU it is a small
one, so that the command can be tried. Every question shows a JPEG of 1024 x 768 pixels, read for it alone,
and is as long as TextVQA's are with their OCR text. All ways answer the same questions after a round that
warms up, `--gpus` by the processes of `evaluate --gpus`; the server (`python -m toolkit serve`) is a process
of its own, asked over HTTP. `--json FILE` writes the figures.
"""

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from toolkit.bench import synthetic
from toolkit.bench.evaluate import OCR, PICTURE, TEMPLATE
from toolkit.benchmarks.questions import Question
from toolkit.evaluate.shards import Settings, answers
from toolkit.files import write_json
from toolkit.mgm.checkpoint import save_checkpoint
from toolkit.mgm.tokenizer import load_tokenizer

ZOO = Path(__file__).parents[2] / "toolkit" / "world" / "zoo"
URL = "/v1/chat/completions"
BATCH = CLIENTS = 64
NEW_TOKENS = 12
PICTURES = 16  # files; every question has a name of its own for one, so that no work is shared


def words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens that are a word each, and their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {word: place for word, place in vocabulary if word.isascii() and word.isalpha() and len(word) > 2}


def save_model(folder: Path, size: str, device: str) -> None:
    """A random model that writes words, and never ends by itself."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = synthetic.model(size, dtype, torch.device(device))
    tokenizer = load_tokenizer(ZOO / "gemma", model.mgm.model_max_length)
    silent = torch.ones(model.config.vocab_size, dtype=torch.bool)
    silent[list(words(tokenizer).values())] = False
    with torch.no_grad():
        model.lm_head.weight[silent.to(model.device)] = 0
    save_checkpoint(model, folder, tokenizer)


def draw(count: int) -> tuple[list[str], list[bytes]]:
    """Messages, and JPEG files of smooth noise."""
    random, tokenizer = np.random.default_rng(0), load_tokenizer(ZOO / "gemma", 2048)
    lengths = TEMPLATE + random.integers(OCR[0], OCR[1] + 1, count)
    messages = [" ".join(random.choice(list(words(tokenizer)), int(length))) for length in lengths]
    tokens = [len(tokenizer(message).input_ids) for message in messages]
    print(f"{count} questions of {min(tokens)} to {max(tokens)} tokens beside the image's", flush=True)
    files = []
    for _ in range(PICTURES):
        image, file = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)), io.BytesIO()
        image.resize(PICTURE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return messages, files


def evaluation(
    folder: Path, messages: list[str], files: list[bytes], gpus: int, batch: int = BATCH
) -> tuple[float, dict[int, str]]:
    """Answers a second, and the answers."""

    def load(question: Question, draft: object = None) -> Image.Image:
        with Image.open(io.BytesIO(files[int(question.image) % len(files)])) as image:
            return image.convert("RGB")

    questions = [Question({"question_id": n}, message, str(n)) for n, message in enumerate(messages)]
    with answers(Settings(folder, batch, NEW_TOKENS, load), gpus) as model:
        list(model.stream(questions[: 2 * batch * gpus]))
        start = time.perf_counter()
        result = dict(model.stream(questions))
        return len(questions) / (time.perf_counter() - start), result


class Server:
    """`python -m toolkit serve` in a process of its own."""

    def __init__(self, folder: Path, messages: list[str], files: list[bytes]) -> None:
        command = [sys.executable, "-m", "toolkit", "serve", "--model", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--batch-size", str(BATCH)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().split("http://")[1].split()[0]
        self.mine = threading.local()  # each client's connection
        urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in files]
        self.requests = [self.request(message, urls[n % len(urls)]) for n, message in enumerate(messages)]

    @staticmethod
    def request(message: str, url: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": message}, {"type": "image_url", "image_url": {"url": url}}]
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": NEW_TOKENS}

    def ask(self, body: bytes) -> http.client.HTTPResponse:
        """The reply's beginning. Of Python's clients the one that computes least: all share one process."""
        if not hasattr(self.mine, "connection"):
            self.mine.connection = http.client.HTTPConnection(self.address, timeout=120)
        self.mine.connection.request("POST", URL, body, {"Content-Type": "application/json"})
        reply = self.mine.connection.getresponse()
        assert reply.status == 200, reply.read()
        return reply

    def answer(self, number: int) -> str:
        return json.loads(self.ask(self.bodies[number]).read())["choices"][0]["message"]["content"]

    def rate(self, count: int, clients: int) -> tuple[float, dict[int, str]]:
        """Answers a second to so many clients at once, and the answers."""
        self.bodies = [json.dumps(request).encode() for request in self.requests[:count]]
        with ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            result = dict(enumerate(pool.map(self.answer, range(count))))
            return count / (time.perf_counter() - start), result

    def first_token(self, number: int) -> float:
        """Seconds from the request, sent alone, to the first piece of text."""
        body = json.dumps(self.requests[number] | {"stream": True}).encode()
        start, seconds = time.perf_counter(), 0.0
        for line in self.ask(body):
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                seconds = seconds or time.perf_counter() - start
        return seconds


def server(folder: Path, messages: list[str], files: list[bytes], say: Callable[..., None]) -> dict[int, str]:
    """Measure the server; returns its answers to all clients at once."""
    running = Server(folder, messages, files)
    try:
        running.rate(min(len(messages), 2 * BATCH), CLIENTS)
        alone, _ = running.rate(min(len(messages), 32), 1)
        say(server_alone=alone)
        together, result = running.rate(len(messages), CLIENTS)
        say(server=together, server_against_alone=together / alone)
        say(first_token_ms=1e3 * statistics.median(map(running.first_token, range(min(len(messages), 20)))))
        return result
    finally:
        running.process.terminate()
        running.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[1], help="of the evaluation, each in turn (1)"
    )
    parser.add_argument("--questions", type=int, help="(512, without a GPU 32)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # asked of the driver: CUDA itself must not be initialised before the evaluation forks
    gpu = torch.cuda.device_count() > 0
    device, size = ("cuda", "2B") if gpu else ("cpu", "tiny")
    figures: dict[str, Any] = {"size": size, "torch": torch.__version__, "new_tokens": NEW_TOKENS}

    def say(**values: Any) -> None:
        figures.update(values)
        print(", ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / f"MGM-{size}"
        maker = multiprocessing.get_context("spawn").Process(target=save_model, args=(folder, size, device))
        maker.start()
        maker.join()
        messages, files = draw(arguments.questions or (512 if gpu else 32))
        results = []
        for gpus in sorted(arguments.gpus, reverse=True):
            rate, result = evaluation(folder, messages, files, gpus)
            results.append(result)
            say(**{f"evaluation_{gpus}": rate})
        torch.cuda.empty_cache()
        results.append(server(folder, messages, files, say))
    say(server_against_evaluation=figures["server"] / figures[f"evaluation_{min(arguments.gpus)}"])
    unequal = sum(len({each[number] for each in results}) > 1 for number in range(len(messages)))
    say(unequal_answers=unequal, different_answers=len(set(results[0].values())))
    if arguments.json:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
