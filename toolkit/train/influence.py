"""What each row of the first stage does to each benchmark, to first order (TracIn, Pruthi et al. 2020,
"Estimating Training Data Influence by Tracing Gradient Descent", arXiv 2002.08484, with one checkpoint).

    python -m toolkit data influence --samples llava.json --images DIR --pretrained DIR --questions DIR …

A step of SGD with learning rate r on a row changes the parameters by -r times the row's gradient, and the
benchmark's loss by -r times the product of both gradients. Both are taken at the parameters that pretraining
ended with: projector and mining modules. The influence is the product, exact, without a random projection:

    influence(row) = grad(sum of the row's token losses) . grad(mean over questions of their mean token loss)

Above zero the row lowers the loss of the right answers: it helps. Below zero it hurts.

The trained parameters act through the image tokens alone. So a pass of many rows goes once through the
language model, backwards to the image tokens; what is done row by row is the way through the small modules.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from toolkit import assets, scales
from toolkit.benchmarks import BENCHMARKS
from toolkit.contest.records import read_record
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_json, write_json, write_jsonl, write_text
from toolkit.mgm.checkpoint import load_projector
from toolkit.mgm.labelled import mixed, seen
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.progress import Progress
from toolkit.tables import markdown as table
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.inputs import BaseModels, assert_pretrained, hashed
from toolkit.train.loader import Steps, workers
from toolkit.train.right_answers import RightAnswers, right_answers
from toolkit.train.stages import Job, prepare, train_only
from toolkit.train.step import SCORED, assembled, expanded, passes, shown
from toolkit.train.strategies.base import Item, Pass

ROWS, SUMMARY, PAGE = "influence.jsonl", "influence.json", "influence.md"
CHUNK = 64  # samples that are held at a time
SHOWN = 5  # rows at either end in the summary
UNIT = "nats a token of the right answers that one step of SGD takes off, divided by its learning rate"

Gradients = Sequence[Tensor]


def flat(gradients: Gradients) -> Tensor:
    """All gradients as one float32 vector [P]."""
    return torch.cat([gradient.float().flatten() for gradient in gradients])


def _loss(model: MGMForCausalLM, part: Pass) -> Tensor:
    return model.loss(part.embeds, part.layout, part.positions, part.targets, part.weights)


def _chunks(asked: RightAnswers) -> Iterator[list[Sample]]:
    chunk: list[Sample] = []
    for sample in asked:
        chunk.append(sample)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def benchmark_gradient(
    model: MGMForCausalLM, parameters: list[Parameter], asked: RightAnswers, device: torch.device
) -> tuple[Tensor, int]:
    """([P], questions): the gradient of the mean over all questions of the mean loss of a right answer's
    tokens."""
    total, count = torch.zeros(sum(p.numel() for p in parameters), device=device), 0
    for samples in _chunks(asked):
        rows = [expanded(model, sample) for sample in samples]
        items = [
            Item(sample, row, 1 / row.predictions)
            for sample, row in zip(samples, rows, strict=True)
            if row.predictions
        ]
        for chosen in passes([item.row for item in items], SCORED):
            with mixed(device):
                loss = _loss(model, assembled(model, [items[place] for place in chosen], device))
            total += flat(torch.autograd.grad(loss, parameters, materialize_grads=True))
        count += len(items)
    if not count:
        raise UserError(f"{asked.benchmark.title} has no question with a right answer: take another folder")
    return total / count, count


def row_gradients(
    model: MGMForCausalLM, parameters: list[Parameter], items: list[Item], device: torch.device
) -> Iterator[Tensor]:
    """[P] of each item's weighted loss, in order. items: of one pass, all with an image."""
    pixels = shown(items, device)
    assert pixels is not None
    with mixed(device):
        features = seen(model, pixels)
        own = [model.tokens_of(part) for part in features.split([1] * len(items))]
        tokens = torch.cat(own).detach().requires_grad_()
        loss = _loss(model, assembled(model, items, device, tokens=tokens))
    (slopes,) = torch.autograd.grad(loss, tokens)
    for row, slope in zip(own, slopes, strict=True):
        yield flat(torch.autograd.grad(row, parameters, slope[None], materialize_grads=True))


def influences(
    model: MGMForCausalLM,
    parameters: list[Parameter],
    dataset: Conversations,
    directions: Tensor,
    device: torch.device,
) -> Tensor:
    """[rows, K] on the CPU: the product of each row's gradient with each of the `directions` [P, K]. A row
    without image or label has none: zeros."""
    values = torch.zeros(len(dataset), directions.shape[1])
    places = range(len(dataset))
    chunks = [list(places[start : start + CHUNK]) for start in places[::CHUNK]]
    progress = Progress("influence of rows", len(dataset))
    with closing(Steps(dataset, chunks, workers(device))) as steps:
        for samples in steps:
            items = [Item(sample, expanded(model, sample), 1.0) for sample in samples]
            pictured = [item for item in items if item.row.images and item.row.predictions]
            for chosen in passes([item.row for item in pictured], SCORED):
                part = [pictured[place] for place in chosen]
                for item, gradient in zip(part, row_gradients(model, parameters, part, device), strict=True):
                    values[item.sample.index] = (gradient @ directions).cpu()
            progress.step(len(samples))
    return values


def influence(
    samples: Path,
    images: Path,
    pretrained: Path,
    base: BaseModels,
    questions: Path,
    output: Path,
) -> dict[str, Any]:
    """Write influence.jsonl (id, caption, influence by benchmark; a line a row of `samples`), influence.json
    and influence.md to `output`; return the summary.

    pretrained: folder of the first stage, which names scale and seed. questions: a folder for each benchmark,
    with its official files, as an evaluation asset has them. UserError where the base models are not those of
    the pretraining, or a file is missing or malformed.
    """
    projector = pretrained / "mm_projector.bin"
    record = read_record(pretrained / "run.json", "pretrain")
    files = base.files()
    assert_pretrained(projector, files, hashed({"projector": projector, **files}))
    warn_of_evaluation(questions)
    scale = scales.load(record.settings["scale"])
    job = Job(samples, images, base, scale, record.settings["seed"], output, [])
    model, device, dtype = prepare(job, scale.pretrain)
    load_projector(model, projector, dtype)
    parameters = list(trained(model).values())
    tokenizer = load_tokenizer(base.llm, model.mgm.model_max_length)
    dataset = Conversations(samples, images, tokenizer, model.mgm, scale.caption_template or scale.template)
    asked = right_answers(questions, tokenizer, model.mgm, scale)
    gradients = {name: benchmark_gradient(model, parameters, part, device) for name, part in asked.items()}
    directions = torch.stack([gradient for gradient, _ in gradients.values()], dim=1)
    values = influences(model, parameters, dataset, directions, device)
    lines = [
        {
            "id": str(row.get("id", "")),
            "caption": row["conversations"][-1]["value"],
            "influence": dict(zip(asked, of_row, strict=True)),
        }
        for row, of_row in zip(dataset.rows, values.tolist(), strict=True)
    ]
    counts = {name: count for name, (_, count) in gradients.items()}
    summary = {"unit": UNIT, "rows": len(lines), "benchmarks": summarised(lines, counts)}
    write_jsonl(output / ROWS, lines)
    write_text(output / PAGE, markdown(summary))
    write_json(output / SUMMARY, summary)
    return summary


def trained(model: MGMForCausalLM) -> dict[str, Parameter]:
    """What pretraining trains, by name; the model is put into evaluation."""
    model.eval()
    return train_only(model, lambda name: any(part in name for part in TRAINED_NAMES))


def warn_of_evaluation(questions: Path) -> None:
    """Say that rows chosen by these questions are chosen by the test, where the folder is an asset that
    experiments are scored on."""
    manifest = questions / "manifest.json"
    content = read_json(manifest) if manifest.is_file() else {}
    entry = assets.registry().get(str(content.get("asset"))) if isinstance(content, dict) else None
    if entry and entry.serves == "evaluation":
        print(
            f"warning: experiments are scored on the questions of {questions}: whoever chooses rows by this "
            "result chooses them by the test; take questions that the evaluation does not ask",
            file=sys.stderr,
        )


def summarised(lines: list[dict[str, Any]], counts: Mapping[str, int]) -> dict[str, Any]:
    """By benchmark: its questions, the share of rows that hurt, the sum of all influences, the rows at either
    end."""
    result = {}
    for name, count in counts.items():
        order = sorted(lines, key=lambda line: line["influence"][name])
        values = [line["influence"][name] for line in order]
        result[name] = {
            "questions": count,
            "hurt": sum(value < 0 for value in values) / len(values),
            "sum": sum(values),
            "helped_most": [line for line in order[::-1] if line["influence"][name] > 0][:SHOWN],
            "hurt_most": [line for line in order if line["influence"][name] < 0][:SHOWN],
        }
    return result


def markdown(summary: dict[str, Any]) -> str:
    """A line a benchmark, and the unit."""
    rows = []
    for name, part in summary["benchmarks"].items():
        ends = [
            ", ".join(f"{line['id']} ({line['influence'][name]:+.4g})" for line in part[side]) or "none"
            for side in ("helped_most", "hurt_most")
        ]
        rows.append(
            [
                BENCHMARKS[name].title,
                part["questions"],
                f"{100 * part['hurt']:.1f}",
                f"{part['sum']:+.4g}",
                *ends,
            ]
        )
    header = ["benchmark", "questions", "rows that hurt, %", "sum", "helped most", "hurt most"]
    return f"{counted(summary['rows'], 'row')}; influence: {summary['unit']}\n\n{table(header, rows)}"
