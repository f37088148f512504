"""One benchmark from the questions to the record: the model answers, the official rule scores, the image-swap
control is answered.

Used by `python -m toolkit evaluate textvqa` and the like. In the folder: the answers where the kit puts them,
control.jsonl, score.json, run.json.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.benchmarks.base import Benchmark, Files
from toolkit.benchmarks.questions import Load, Question, assert_readable, shuffle_images
from toolkit.contest.records import write_record
from toolkit.evaluate import control
from toolkit.evaluate.answer_file import (
    PACKAGES,
    Checkpoint,
    discard_partial,
    score_file,
    summary,
    write_answers,
)
from toolkit.evaluate.shards import Settings, answers
from toolkit.files import read_jsonl, sha256, write_json


@dataclass(frozen=True)
class Run:
    """What is asked of which model, and how.

    files: the benchmark's own, by name. model: the finetuning folder. folder: where the results go.
    instruction: what ends each question, for a benchmark that has one. shuffle_images: seed of an exchange of
    all images, for an evaluation that shows what guessing scores. gpus: of more than one each answers its
    share.
    """

    benchmark: Benchmark
    files: Files
    model: Path
    folder: Path
    batch_size: int
    instruction: str | None = None
    shuffle_images: int | None = None
    gpus: int = 1


def evaluate(run: Run) -> dict[str, Any]:
    """Answer, score, record; return the score. UserError for files that cannot be asked or scored, before the
    model is loaded."""
    benchmark = run.benchmark
    questions = benchmark.questions(run.files, run.instruction)
    for warning in benchmark.warnings(run.files):
        print(f"warning: {warning}", file=sys.stderr)
    if run.shuffle_images is not None:
        questions = shuffle_images(questions, run.shuffle_images)
    load = benchmark.load(run.files, questions)
    checkpoint = Checkpoint(run.model)
    paths = benchmark.outputs(run.model.resolve().name, benchmark.split_of(run.files))
    outputs = {name: run.folder / path for name, path in paths.items()}
    assert_readable(questions, load)
    if len({question.image for question in questions}) == 1:
        name = outputs["answers"].name
        print(
            f"{name}: {control.FILE} is left out, it needs two different images; an entry must have it",
            file=sys.stderr,
        )
    elif run.shuffle_images is None:
        outputs["control"] = run.folder / control.FILE
    settings = answer(run, questions, load, checkpoint, outputs)
    benchmark.write_further(run.files, outputs)
    result = benchmark.score(run.files, outputs["answers"])
    record(run, checkpoint, settings, result, outputs)
    for path in outputs.values():
        discard_partial(path)
    return result


def answer(
    run: Run, questions: list[Question], load: Load, checkpoint: Checkpoint, outputs: dict[str, Path]
) -> dict[str, Any]:
    """Let the model answer all questions, and those of the control where `outputs` has it; return the
    effective settings."""
    path = outputs["answers"]
    settings: dict[str, Any] = {"max_new_tokens": run.benchmark.max_new_tokens}
    if run.benchmark.instruction is not None:
        settings["prompt"] = run.instruction or run.benchmark.instruction
    print(f"{path.name}: loading {checkpoint.path}", file=sys.stderr)
    how = Settings(checkpoint.path, run.batch_size, run.benchmark.max_new_tokens, load)
    with answers(how, run.gpus) as model:
        settings |= {"decoding": "greedy", "shuffle_images": run.shuffle_images, "device": model.device}
        write_answers(path, questions, model.stream, checkpoint, settings)
        if "control" in outputs:
            exchanged, places = control.exchanged(questions), control.places(len(questions))
            write_answers(outputs["control"], exchanged, model.stream, checkpoint, settings, places)
    if model.again:
        print(f"{path.name}: {model.again} near-ties were answered a second time, alone", file=sys.stderr)
    return settings | {"batch_size": run.batch_size}


def record(
    run: Run,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    result: dict[str, Any],
    outputs: dict[str, Path],
) -> None:
    """Write score.json and run.json; `result` gets the texts' hash and the control's agreement."""
    rows = list(read_jsonl(outputs["answers"]))
    result["texts"] = control.texts_sha256(rows)
    if "control" in outputs:
        result["control"] = control.agreement(rows, list(read_jsonl(outputs["control"])))
    name, score = run.benchmark.name, run.folder / "score.json"
    files = {key: sha256(path) for key, path in outputs.items()}
    write_json(score, score_file(name, result, checkpoint.name, checkpoint.digest, files, settings))
    write_record(
        run.folder / "run.json",
        f"evaluate {name}",
        inputs={"merge": checkpoint.proof, **{name: run.files[name] for name in run.benchmark.files}},
        outputs={**outputs, "score": score},
        settings=settings,
        results=summary(result),
        packages=PACKAGES,
        device=settings["device"],
    )
