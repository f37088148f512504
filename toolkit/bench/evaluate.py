"""Speed of answering many questions at once against one at a time, whether the answers are equal, and what
rounding does to the logits.

python -m toolkit bench eval --batch-size 64
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from toolkit.arguments import Output, at_least_one
from toolkit.bench import synthetic
from toolkit.files import write_json
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.generate import CHUNK, ROUNDING, Greedy, Prompt, prepared
from toolkit.mgm.layout import IMAGE_TOKEN_INDEX
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import pixels, tensors

Outcome = TypeVar("Outcome")

GIB = 2**30
TEMPLATE = 25  # tokens that follow the image besides OCR text: question, instruction, end of turn
OCR = (60, 120)  # fewest and most tokens of OCR text in a prompt
PICTURE = (1024, 768)  # the usual size of a TextVQA image


@dataclass(frozen=True)
class Work:
    """Random prompts of random token ids, each about an image of its own, kept as JPEG; decoded and resized
    when they are asked for."""

    model: MGMForCausalLM
    prompts: list[Prompt]
    files: list[bytes]

    def load(self, number: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.files[number % len(self.files)])) as image:
            return pixels(image, self.model.mgm)


def work(model: MGMForCausalLM, questions: int, seed: int) -> Work:
    """Prompts and images by a seed; each image is smooth noise, so that its file is of an ordinary size."""
    random = np.random.default_rng(seed)
    prompts, files = [], []
    before = (model.config.bos_token_id, *random.integers(3, model.config.vocab_size, 3).tolist())
    for number in range(questions):
        text = random.integers(
            3, model.config.vocab_size, TEMPLATE + int(random.integers(OCR[0], OCR[1] + 1))
        )
        prompts.append(Prompt(before, tuple(text.tolist()), number))
    for _ in range(min(questions, 16)):
        image, file = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)), io.BytesIO()
        image.resize(PICTURE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return Work(model, prompts, files)


class Speed(BaseModel):
    """Questions a second of one way to answer and the seconds of its parts: waiting for images, towers and
    prompts, new tokens."""

    model_config = ConfigDict(extra="forbid")
    way: str
    questions: int
    per_second: float
    waited: float | None = None
    prompts: float | None = None
    tokens: float | None = None
    again: int = 0
    peak_allocated_gib: float | None = None


def timed(
    device: torch.device, way: str, questions: int, action: Callable[[], Outcome]
) -> tuple[Outcome, Speed]:
    """The action's result and its speed, peak memory included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else None
    return result, Speed(
        way=way, questions=questions, per_second=questions / seconds, peak_allocated_gib=peak
    )


def official(workload: Work, questions: int, new_tokens: int) -> Callable[[], None]:
    """The official way: one question at a time through transformers' generation. Images are prepared
    beforehand, as its workers do."""
    model = workload.model
    ready = [torch.from_numpy(workload.load(number))[None].to(model.device) for number in range(questions)]

    def answer() -> None:
        for prompt, image in zip(workload.prompts, ready, strict=False):
            low, high = (part.to(model.dtype) for part in tensors(image, model.mgm))
            ids = torch.tensor([[*prompt.before, IMAGE_TOKEN_INDEX, *prompt.after]], device=model.device)
            model.greedy(ids, None, low, high, new_tokens).tolist()

    return answer


def ours(
    workload: Work, questions: int, batch_size: int, new_tokens: int
) -> tuple[dict[int, list[int]], Speed]:
    """`batch_size` questions at once, after a run that captures graphs and fills the allocator's cache."""
    greedy, prompts = Greedy(workload.model, batch_size), workload.prompts[:questions]

    def answer() -> dict[int, list[int]]:
        return dict(greedy.run(prompts, workload.load, new_tokens))

    warm = min(questions, max(batch_size, 2))
    dict(greedy.run(prompts[:warm], workload.load, new_tokens))
    list(greedy.run(prompts[:1], workload.load, new_tokens))
    greedy.again, greedy.waited, greedy.began, greedy.decoded = 0, 0.0, 0.0, 0.0
    result, speed = timed(workload.model.device, f"{batch_size} at a time", questions, answer)
    parts = {
        "waited": greedy.waited,
        "prompts": greedy.began,
        "tokens": greedy.decoded,
        "again": greedy.again,
    }
    return result, speed.model_copy(update=parts)


class Recorder(Greedy):
    """Keeps the logits of every pass; without graphs, which would run no Python."""

    def __init__(self, model: MGMForCausalLM, batch_size: int) -> None:
        super().__init__(model, batch_size)
        self.graphs = False
        self.passes: list[Tensor] = []

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        self.passes.append(logits.clone())
        return logits


@torch.inference_mode()
def rounding(workload: Work, questions: int, batch_size: int, new_tokens: int) -> tuple[float, float]:
    """How far the batch moves logits that a question has alone, in their standard deviations: (between any
    two tokens, the two best).

    `batch_size` prompts are fed together with the tokens that each chose alone; the first `questions` of them
    are compared.
    """
    prompts, alone = workload.prompts[:batch_size], Recorder(workload.model, 1)
    greedy_ids, logits = {}, {}
    for number, prompt in enumerate(prompts):
        [(_, greedy_ids[number])] = alone.run([prompt], {0: workload.load(number)}.__getitem__, new_tokens)
        if number < questions:
            logits[number] = torch.cat(alone.passes)
        alone.passes = []
    together = Recorder(workload.model, batch_size)
    rows = list(prepared(prompts, lambda number: together.sent(workload.load(number)), new_tokens))
    together.at_once(max(map(together.length, prompts)) + new_tokens)
    slots = together.slots(batch_size)
    for first in range(0, len(rows), CHUNK):
        together.begin(slots, rows[first : first + CHUNK])
    together.passes = [torch.cat(together.passes)]
    for step in range(new_tokens - 1):
        for row in rows:
            row.new = [*greedy_ids[row.number], *[0] * new_tokens][: step + 1]
        slots.step()
    any_two = best_two = 0.0
    for slot, row in enumerate(rows):
        for step, before in enumerate(logits.get(row.number, ())):
            change = (together.passes[step][slot] - before) / before.std()
            best, second = before.topk(2).indices
            any_two = max(any_two, (change.max() - change.min()).item())
            best_two = max(best_two, (change[best] - change[second]).abs().item())
    return any_two, best_two


class Result(BaseModel):
    """What was found. unequal: answers that differ between one and many at a time. any_two, best_two: see
    `rounding`; bound: ROUNDING."""

    model_config = ConfigDict(extra="forbid")
    size: str
    device: str
    torch: str
    new_tokens: int
    speeds: list[Speed]
    unequal: int
    any_two: float
    best_two: float
    bound: float


def measure(size: str, workload: Work, alone: int, batch_size: int, new_tokens: int) -> Result:
    """The official way and one at a time with the first `alone` questions, all of them `batch_size` at a
    time."""
    model = workload.model
    official(workload, 2, new_tokens)()
    _, transformers = timed(
        model.device, "one at a time, transformers", alone, official(workload, alone, new_tokens)
    )
    single, unbatched = ours(workload, alone, 1, new_tokens)
    many, batched = ours(workload, len(workload.prompts), batch_size, new_tokens)
    any_two, best_two = rounding(workload, alone, batch_size, new_tokens)
    return Result(
        size=size,
        device=torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        torch=torch.__version__,
        new_tokens=new_tokens,
        speeds=[transformers, unbatched, batched],
        unequal=sum(many[number] != ids for number, ids in single.items()),
        any_two=any_two,
        best_two=best_two,
        bound=ROUNDING[model.dtype],
    )


def table(result: Result) -> str:
    """Markdown, one row a way of answering, and two sentences."""
    heads = [
        "way",
        "questions",
        "questions/s",
        "ratio",
        "images, prompts, tokens (s)",
        "rerun alone",
        "peak allocated",
    ]
    lines = [heads, ["---"] * len(heads)]
    for speed in result.speeds:
        parts = (
            "-" if speed.prompts is None else f"{speed.waited:.2f}, {speed.prompts:.2f}, {speed.tokens:.2f}"
        )
        memory = "-" if speed.peak_allocated_gib is None else f"{speed.peak_allocated_gib:.1f} GiB"
        ratio = speed.per_second / result.speeds[0].per_second
        again = f"{100 * speed.again / speed.questions:.1f} %"
        lines.append(
            [speed.way, str(speed.questions), f"{speed.per_second:.2f}", f"{ratio:.1f}", parts, again, memory]
        )
    return "\n".join(
        [
            f"MGM-{result.size}, {result.device}, torch {result.torch}, {result.new_tokens} new tokens",
            *(f"| {' | '.join(line)} |" for line in lines),
            f"unequal answers: {result.unequal} of {result.speeds[1].questions}",
            f"largest change by the batch, in standard deviations of the logits: {result.any_two:.2g} "
            f"between any two tokens, {result.best_two:.2g} between the two best (bound {result.bound:.2g})",
        ]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--size",
        choices=tuple(synthetic.CONFIGS),
        help="of the model; by default 2B on a GPU, tiny on the CPU",
    )
    parser.add_argument("--batch-size", type=at_least_one, default=64, help="questions at once (default 64)")
    parser.add_argument("--questions", type=at_least_one, default=256, help="asked so (default 256)")
    parser.add_argument("--alone", type=at_least_one, default=32, help="asked one at a time (default 32)")
    parser.add_argument(
        "--new-tokens",
        type=at_least_one,
        default=12,
        help="of every answer (default 12; random models do not end by themselves)",
    )
    parser.add_argument("--json", type=Output, help="where to write everything that was found")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, write everything to --json."""
    device = choose_device()
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    size = arguments.size or ("2B" if device.type == "cuda" else "tiny")
    model = synthetic.model(size, torch.float16 if device.type == "cuda" else torch.float32, device)
    workload = work(model, arguments.questions, synthetic.SEED)
    result = measure(size, workload, arguments.alone, arguments.batch_size, arguments.new_tokens)
    print(table(result))
    if arguments.json:
        write_json(arguments.json, result.model_dump())
