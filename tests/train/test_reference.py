"""Twelve steps of the trainer against a loop as plain as the official one: whole logits, micro-batches of the
kit's size, float32."""

import ast
import json
import os
import sys
from pathlib import Path

import forks
import pytest
import torch
from torch.nn import functional as F

from toolkit import scales
from toolkit.mgm.checkpoint import build, load_projector, save_projector
from toolkit.mgm.layout import IGNORE_INDEX
from toolkit.mgm.processor import blank, tensors
from toolkit.mgm.text import collate
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train import distributed
from toolkit.train.dataset import Conversations
from toolkit.train.lora import attach
from toolkit.train.stages import train_only
from toolkit.train.trainer import Plan, dropout_seed, sample_order

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="float32 is what the CPU trains in")
STEPS, SEED = 12, 3
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "base": "full"}
MICRO = {"micro_batch": 4}  # two micro-batches a step
TRAIN = f"""
import sys
from pathlib import Path
from tiny_training import changed
from toolkit.train import stages
from toolkit.train.inputs import BaseModels
*paths, division = sys.argv[1:]
samples, images, projector, llm, clip, convnext, output = map(Path, paths)
base, scale = BaseModels(llm, clip, convnext), changed(**{MICRO})
job = stages.Job(samples, images, base, scale, {SEED}, output, ["python"])
stages.finetune(job, projector, stages.Lora(**{LORA}) if division == "open" else None)
"""


@pytest.fixture(scope="module")
def rows(conversations, tmp_path_factory):
    """96 rows with answers of several lengths, a fifth without an image."""
    found = json.loads(conversations.samples.read_text())
    many = [
        json.loads(json.dumps(found[number % len(found)] | {"id": str(number)}))
        for number in range(8 * STEPS)
    ]
    for number, row in enumerate(many):
        row["conversations"][1]["value"] = " ".join(
            ["a red image of blue", "4", "the image"][: 1 + number % 3]
        )
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(many))
    return path


@pytest.fixture(scope="module")
def projector(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("projector") / "mm_projector.bin"
    save_projector(build(parts.llm, parts.clip, parts.convnext, seed=9, image_size_aux=128), path)
    return path


def reference(rows, images, projector, parts, division: str) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step."""
    tiny = scales.load("tiny")
    stage = tiny.finetune[division].model_copy(update=MICRO)
    settings = {
        "image_size_aux": 128,
        "image_aspect_ratio": stage.image_aspect_ratio,
        "model_max_length": tiny.model_max_length,
    }
    model = build(parts.llm, parts.clip, parts.convnext, seed=SEED, **settings)
    load_projector(model, projector, torch.float32)
    if division == "open":
        attach(model, LORA["rank"], LORA["alpha"], LORA["dropout"], SEED)
    new = ("lora_", "mm_projector", "vlm_uni")
    trained = train_only(
        model,
        lambda name: any(part in name for part in new) if division == "open" else "vision_tower" not in name,
    )
    dataset = Conversations(
        rows, images, load_tokenizer(parts.llm, tiny.model_max_length), model.mgm, tiny.template
    )
    plan = Plan.of(stage, len(dataset), SEED)
    order = sample_order(dataset.rows, plan, grouped=True)
    optimizer = torch.optim.AdamW(trained.values(), lr=0, weight_decay=0, foreach=False)
    model.train()
    lines = []
    for step in range(plan.steps):
        for parameter in trained.values():  # not None: moments decay where there is no image
            parameter.grad = torch.zeros_like(parameter)
        total = 0.0
        for number in range(plan.accumulation):
            start = (step * plan.accumulation + number) * plan.micro_batch
            samples = [dataset[index] for index in order[start : start + plan.micro_batch]]
            pairs = [
                blank(model.mgm)
                if s.pixels is None
                else [x[0] for x in tensors(torch.tensor(s.pixels)[None], model.mgm)]
                for s in samples
            ]
            texts = [
                {"input_ids": s.input_ids, "labels": s.labels, "images": a, "images_aux": b}
                for s, (a, b) in zip(samples, pairs, strict=True)
            ]
            batch = collate(texts, 0, tiny.model_max_length)
            spliced = model.splice(
                batch["input_ids"], batch["mask"], batch["labels"], batch["images"], batch["images_aux"]
            )
            logits = model(inputs_embeds=spliced.embeds, attention_mask=spliced.layout.mask).logits[:, :-1]
            loss = (
                F.cross_entropy(
                    logits.flatten(0, 1), spliced.layout.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
                )
                / plan.accumulation
            )
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).item()
        optimizer.param_groups[0]["lr"] = plan.rate(step)
        optimizer.step()
        lines.append((total, norm))
    return lines


def train(
    processes: int, inputs: list[Path], output: Path, division: str, before: str = ""
) -> list[dict[str, float]]:
    """The log lines of a finetuning on so many processes, each of which runs `before` first."""
    common = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(distributed.free_port()),
    }
    started = []
    for rank in range(processes):
        many = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else common
        command = [sys.executable, "-c", before + TRAIN, *inputs, output, division]
        started.append(forks.Fork(command, env={**os.environ, **many}))
    assert [process.wait() for process in started] == [0] * processes
    return [ast.literal_eval(line) for line in (output / "finetune.log").read_text().splitlines()][:-1]


@pytest.mark.slow
@pytest.mark.parametrize("division", ["open", "closed"])
def test_twelve_steps_are_those_of_a_plain_loop(rows, conversations, projector, parts, division, tmp_path):
    expected = reference(rows, conversations.images, projector, parts, division)
    assert len(expected) == STEPS and expected[-1][0] < expected[0][0]
    inputs = [rows, conversations.images, projector, parts.llm, parts.clip, parts.convnext]
    for processes in (1, 2):
        lines = train(processes, inputs, tmp_path / str(processes), division)
        assert len(lines) == STEPS
        for (loss, norm), line in zip(expected, lines, strict=True):
            assert line["loss"] == pytest.approx(loss, abs=1.5e-4) and line["grad_norm"] == pytest.approx(
                norm, rel=2e-3
            )


SCARCE = """
import os
import torch
from toolkit.train.step import Stepper
run, tried = Stepper.run, []
def scarce(self, *arguments):
    loss = run(self, *arguments)
    tried.append(self.execution.pass_tokens)
    if os.environ["RANK"] == "1" and len(tried) == 1:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
    return loss
Stepper.run = scarce
"""


def test_a_step_is_repeated_where_one_of_two_processes_runs_out_of_memory(
    rows, conversations, projector, parts, tmp_path
):
    few = tmp_path / "rows.json"
    few.write_text(json.dumps(json.loads(rows.read_text())[:24]))
    inputs = [few, conversations.images, projector, parts.llm, parts.clip, parts.convnext]
    expected = train(1, inputs, tmp_path / "one", "open")
    lines = train(2, inputs, tmp_path / "two", "open", before=SCARCE)
    assert len(lines) == len(expected) == 3
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1.5e-4)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-3)


def test_each_process_and_step_has_its_own_dropout():
    seeds = [dropout_seed(1024, step, rank) for step in range(50) for rank in range(8)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**64 for seed in seeds)
    assert dropout_seed(1024, 7, 0) == 1024 * 1_000_003 + 7
    assert dropout_seed(1024, 7, 1) == 0xDD16ED3ECCEEA9EA
