"""Command line of the evaluation."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

Files = dict[str, Path]


def at_least_one(text: str) -> int:
    """An integer from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 up")
    return int(text)


def from_zero(text: str) -> int:
    """An integer from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 up")
    return int(text)


def utf8(text: str) -> str:
    """A text that UTF-8 can hold: Python passes on other bytes as half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `evaluate`."""
    ask = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ask.add_argument("--model", type=Path, required=True, help="finetuning folder; its merge.json names the checkpoint")
    ask.add_argument("--batch-size", type=at_least_one, default=16, help="questions answered at once (16)")
    ask.add_argument("--shuffle-images", type=int, metavar="SEED", help="control: give every question another question's image")
    ask.add_argument("--output", type=Path, required=True, help="folder for answers, score.json and run.json")

    parser = subparsers.add_parser("textvqa", parents=[ask], help="answer TextVQA with a model and score it", allow_abbrev=False)
    parser.add_argument("--questions", type=Path, required=True, help="question file, JSON lines")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.set_defaults(run=textvqa)

    parser = subparsers.add_parser("mmbench", parents=[ask], help="answer MMBench with a model and score it", allow_abbrev=False)
    parser.add_argument("--table", type=Path, required=True, help="benchmark table, .tsv with images")
    parser.add_argument("--prompt", type=utf8, required=True, help="instruction that follows each question's options")
    parser.set_defaults(run=mmbench)

    parser = subparsers.add_parser("textvqa-score", help="score TextVQA answers", allow_abbrev=False)
    parser.add_argument("--annotations", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--answers", type=Path, required=True, help="answer file, JSON lines")
    parser.set_defaults(run=textvqa_score)

    parser = subparsers.add_parser("mmbench-score", help="score MMBench predictions", allow_abbrev=False)
    parser.add_argument("--table", type=Path, required=True, help="upload table .xlsx, or the benchmark's .tsv with --answers")
    parser.add_argument("--answers", type=Path, help="answer file, JSON lines, instead of the column prediction")
    parser.set_defaults(run=mmbench_score)

    parser = subparsers.add_parser("compare", help="put experiments side by side", allow_abbrev=False)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="result folders, the baseline's first")
    parser.add_argument("--seed", type=from_zero, required=True, help="of the bootstrap")
    parser.add_argument("--resamples", type=at_least_one, required=True, help="of the bootstrap")
    parser.add_argument("--output", type=Path, required=True, help="compare.json")
    parser.add_argument("--markdown", type=Path, help="the same as a table")
    parser.set_defaults(run=compare)

    parser = subparsers.add_parser("contamination", help="compare training rows with the benchmarks", allow_abbrev=False)
    parser.add_argument("--samples", type=Path, required=True, help="training rows, Data-Juicer jsonl")
    parser.add_argument("--images", type=Path, required=True, help="the folder that their image paths are relative to")
    parser.add_argument("--questions", type=Path, required=True, help="TextVQA's question file, JSON lines")
    parser.add_argument("--question-images", type=Path, required=True, help="folder of TextVQA's images")
    parser.add_argument("--annotations", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--table", type=Path, required=True, help="MMBench's table, .tsv with images")
    parser.add_argument("--threads", type=at_least_one, default=1, help="that read images (1); the result does not depend on it")
    parser.add_argument("--output", type=Path, required=True, help="contamination.json")
    parser.set_defaults(run=contamination)


def textvqa(arguments: argparse.Namespace) -> None:
    """Answer, score, record."""
    from toolkit.evaluate import textvqa as benchmark
    from toolkit.evaluate.questions import folder_images

    questions = benchmark.load_questions(arguments.questions)
    # Annotations that do not fit are found now, not after hours of answering.
    benchmark.references(arguments.annotations, [question.head for question in questions], arguments.questions)
    load = folder_images(arguments.images, questions)
    outputs = {"answers": arguments.output / "bm1.jsonl"}
    model, settings = _answer(arguments, questions, load, outputs, {"max_new_tokens": benchmark.MAX_NEW_TOKENS})
    inputs = {"merge": model.proof, "questions": arguments.questions, "annotations": arguments.annotations}
    _record("textvqa", arguments.output, model, settings, benchmark.score(arguments.annotations, outputs["answers"]), inputs, outputs)


def mmbench(arguments: argparse.Namespace) -> None:
    """Answer, score, write the upload table, record."""
    from toolkit.evaluate import mmbench as benchmark
    from toolkit.evaluate.questions import inline_image
    from toolkit.evaluate.upload import write_upload

    table = benchmark.load_table(arguments.table)
    for warning in benchmark.warnings(arguments.table):
        print(f"warning: {warning}", file=sys.stderr)
    questions = benchmark.questions(table, arguments.prompt)
    split, name = arguments.table.stem, arguments.model.resolve().name
    answers = arguments.output / "answers" / split / f"{name}.jsonl"
    upload = arguments.output / "answers_upload" / split / f"{name}.xlsx"
    outputs = {"answers": answers, "upload": upload}
    settings = {"max_new_tokens": benchmark.MAX_NEW_TOKENS, "prompt": arguments.prompt}
    model, settings = _answer(arguments, questions, inline_image, outputs, settings)
    write_upload(upload, table, benchmark.predictions(answers, table["index"].tolist(), arguments.table))
    inputs = {"merge": model.proof, "table": arguments.table}
    _record("mmbench", arguments.output, model, settings, benchmark.score(arguments.table, answers), inputs, outputs)


def textvqa_score(arguments: argparse.Namespace) -> None:
    """Print the score as one JSON object."""
    from toolkit.evaluate.textvqa import score

    _print(score(arguments.annotations, arguments.answers, complete=False), "unanswered")


def mmbench_score(arguments: argparse.Namespace) -> None:
    """Print the score as one JSON object."""
    from toolkit.evaluate.mmbench import score, warnings

    _print(score(arguments.table, arguments.answers, complete=False), "empty")
    for warning in warnings(arguments.table):
        print(f"warning: {warning}", file=sys.stderr)


def compare(arguments: argparse.Namespace) -> None:
    """Write the comparison and print its table."""
    from toolkit.evaluate.compare import compare as compared
    from toolkit.evaluate.compare import markdown, write_comparison

    result = compared(arguments.results, arguments.seed, arguments.resamples)
    write_comparison(result, arguments.output, arguments.markdown)
    print(markdown(result), end="")


def contamination(arguments: argparse.Namespace) -> None:
    """Write what was compared and found; say so on stderr if anything was."""
    from toolkit.evaluate.contamination import contamination as compared
    from toolkit.files import write_json

    names = ("samples", "images", "questions", "question_images", "annotations", "table", "threads")
    result = compared(**{name: getattr(arguments, name) for name in names})
    write_json(arguments.output, result)
    counts, found = result["compared"], result["found"]
    items = f"{counts['evaluation_images']} images and {counts['evaluation_texts']} texts"
    print(f"{counts['rows']} rows compared with {items} of the evaluation: {len(found)} near-duplicates")
    if found:
        first = f"{found[0]['training']} is like {found[0]['evaluation']}"
        print(f"warning: {first}; take the rows out or say why in solution/exceptions.yaml: {arguments.output} has all", file=sys.stderr)


def _print(result: dict[str, Any], missing: str) -> None:
    """The score as one JSON object on stdout; a word on stderr when answers are missing."""
    print(json.dumps(_summary(result)))
    if result[missing]:
        print(f"warning: {result[missing]} questions are {missing}", file=sys.stderr)


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """A score without its single questions."""
    return {key: value for key, value in result.items() if key != "scores"}


def _answer(arguments, questions, load, outputs: Files, settings: dict[str, Any]):
    """Let the model answer into outputs["answers"]; return its checkpoint and all settings. load: a question's image.

    The control is asked too, and added to `outputs`, unless all questions have the same image or images are shuffled anyway.
    """
    from toolkit.evaluate import control
    from toolkit.evaluate.generate import Checkpoint, write_answers
    from toolkit.evaluate.questions import assert_readable, shuffle_images

    if arguments.shuffle_images is not None:
        questions = shuffle_images(questions, arguments.shuffle_images)
    checkpoint, path = Checkpoint(arguments.model), outputs["answers"]
    assert_readable(questions, load)
    if len({question.image for question in questions}) == 1:
        print(f"{path.name}: {control.FILE} is left out, it needs two different images; an entry must have it", file=sys.stderr)
    elif arguments.shuffle_images is None:
        outputs["control"] = arguments.output / control.FILE

    from toolkit.mgm.answer import Answerer  # seconds of importing, so after everything that can fail at once

    print(f"{path.name}: loading {checkpoint.path}", file=sys.stderr)
    answerer = Answerer(checkpoint.path, batch_size=arguments.batch_size)
    settings |= {"decoding": "greedy", "shuffle_images": arguments.shuffle_images, "device": answerer.device.type}

    def answer(*asked):
        return answerer.stream(*asked, settings["max_new_tokens"])

    write_answers(path, questions, answer, load, checkpoint, settings)
    if "control" in outputs:
        places = control.places(len(questions))
        write_answers(outputs["control"], control.exchanged(questions), answer, load, checkpoint, settings, places)
    if answerer.again:
        print(f"{path.name}: {answerer.again} near-ties were answered a second time, alone", file=sys.stderr)
    return checkpoint, settings | {"batch_size": arguments.batch_size}


def _record(benchmark: str, folder: Path, model, settings: dict[str, Any], result: dict[str, Any], inputs: Files, outputs: Files) -> None:
    """Write score.json and run.json, then drop what only a continued run needs."""
    from toolkit.evaluate import control
    from toolkit.evaluate.generate import discard_partial
    from toolkit.files import read_jsonl, sha256, write_json
    from toolkit.record import write_record

    rows = list(read_jsonl(outputs["answers"]))
    result["texts"] = control.texts_sha256(rows)
    if "control" in outputs:
        result["control"] = control.agreement(rows, list(read_jsonl(outputs["control"])))
    about = {
        "model": {"name": model.name, "merge_sha256": model.digest},
        "files": {name: sha256(path) for name, path in outputs.items()},
        "settings": settings,
    }
    write_json(folder / "score.json", {"benchmark": benchmark, **_summary(result), **about, "scores": result["scores"]})
    write_record(
        folder / "run.json",
        f"evaluate {benchmark}",
        inputs=inputs,
        outputs={**outputs, "score": folder / "score.json"},
        settings=settings,
        results=_summary(result),
        packages=("torch", "transformers", "pillow"),
        device=settings["device"],
    )
    for path in outputs.values():
        discard_partial(path)
    print(f"{benchmark}: {result['accuracy']:.2f} % of {result['questions']} questions")
