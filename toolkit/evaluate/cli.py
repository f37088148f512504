"""Command line of the evaluation: `evaluate BENCHMARK`, `score`, `compare`, `contamination`, and
`BENCHMARK-score` for the contest's, whose files lie where the kit has them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from toolkit.arguments import Output, at_least_one, from_zero, output_folder, processes, resamples, seed, utf8
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.benchmarks.base import Benchmark, Files, flag
from toolkit.benchmarks.labelled import REPEATED, UNKNOWN
from toolkit.config import Asked, as_flag
from toolkit.counted import counted
from toolkit.errors import UserError

# what a scorer passes over, by the keys of its result
WARNED = {
    "unanswered": (("question is", "questions are"), "unanswered"),
    "empty": (("answer is", "answers are"), "missing or empty"),
    REPEATED: (("answer is", "answers are"), "to a question that another line answers too"),
    UNKNOWN: (("answer is", "answers are"), "to no question"),
}
TRAINING_IMAGES = "images"  # of `contamination`; a benchmark's folder of that name is --question-images there


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `evaluate`."""
    for benchmark in BENCHMARKS.values():
        _benchmark(subparsers, benchmark)
    for name in CONTEST:
        _score(subparsers, BENCHMARKS[name])

    parser = subparsers.add_parser(
        "score", help="score answers as the official scorer does", allow_abbrev=False
    )
    parser.add_argument(
        "--benchmark", required=True, choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the benchmark's official files",
    )
    parser.add_argument("--answers", type=Path, required=True, help="answer file, JSON lines")
    parser.set_defaults(run=published)

    parser = subparsers.add_parser("compare", help="put experiments side by side", allow_abbrev=False)
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, help="result folders, the baseline's first"
    )
    contest = " ".join(CONTEST)
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=list(CONTEST),
        choices=list(BENCHMARKS),
        metavar="NAME",
        help=f"({contest})",
    )
    parser.add_argument(
        "--seeds",
        type=seed,
        nargs="+",
        default=[0],
        help="of the trainings: DIR has the first, DIR-seedN the others",
    )
    parser.add_argument("--seed", type=seed, required=True, help="of the bootstrap")
    parser.add_argument("--resamples", type=resamples, required=True, help="of the bootstrap, from 100 up")
    parser.add_argument("--output", type=Output, required=True, help="compare.json")
    parser.add_argument("--markdown", type=Output, help="the same as a table")
    parser.set_defaults(run=compare)

    parser = subparsers.add_parser(
        "strategies", help="experiments that learn differently, over several seeds", allow_abbrev=False
    )
    parser.add_argument("--comparison", type=Path, required=True, help="compare.json")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds output/ (.)")
    parser.add_argument("--output", type=Output, required=True, help="strategies.json")
    parser.add_argument("--markdown", type=Output, required=True, help="the same as a table")
    parser.set_defaults(run=strategies)

    parser = subparsers.add_parser(
        "contamination", help="compare training rows with the benchmarks", allow_abbrev=False
    )
    parser.add_argument("--samples", type=Path, required=True, help="training rows, Data-Juicer jsonl")
    parser.add_argument(
        "--images", type=Path, required=True, help="the folder that their image paths are relative to"
    )
    for benchmark in BENCHMARKS.values():
        for name, about in benchmark.inputs.items():
            parser.add_argument(flag(_apart(name)), type=Path, help=f"{benchmark.title}: {about}")
    parser.add_argument(
        "--threads",
        type=processes,
        default=1,
        help="that read images (1); the result does not depend on it",
    )
    parser.add_argument("--output", type=Output, required=True, help="contamination.json")
    parser.add_argument(
        "--look-alikes",
        type=Output,
        metavar="FILE",
        help="also list evaluation images that were cropped, mirrored, turned or framed in this file",
    )
    parser.set_defaults(run=contamination)


def _benchmark(subparsers: argparse._SubParsersAction, benchmark: Benchmark) -> None:
    """Answer and score."""
    parser = subparsers.add_parser(
        benchmark.name, help=f"answer {benchmark.title} with a model and score it", allow_abbrev=False
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="finetuning folder; its merge.json names the checkpoint"
    )
    parser.add_argument("--batch-size", type=at_least_one, **as_flag(Asked, "batch_size"))
    parser.add_argument(
        "--gpus",
        type=from_zero,
        default=1,
        metavar="N",
        help="share the questions out among this many GPUs: the same answers sooner (%(default)s)",
    )
    parser.add_argument(
        "--shuffle-images",
        type=seed,
        metavar="SEED",
        help="image-swap control: every question gets another's image",
    )
    parser.add_argument(
        "--output", type=output_folder, required=True, help="folder for answers, score.json and run.json"
    )
    for name, about in benchmark.inputs.items():
        parser.add_argument(flag(name), type=Path, required=True, help=about)
    if benchmark.instruction:
        parser.add_argument(
            "--prompt",
            type=utf8,
            default=benchmark.instruction,
            help=f"ends each question ({benchmark.instruction})",
        )
    parser.set_defaults(run=answer, benchmark=benchmark)


def _score(subparsers: argparse._SubParsersAction, benchmark: Benchmark) -> None:
    """Score alone, by the contest's rule."""
    parser = subparsers.add_parser(
        f"{benchmark.name}-score", help=f"score {benchmark.title} answers", allow_abbrev=False
    )
    for name in benchmark.scored_with:
        parser.add_argument(flag(name), type=Path, required=True, help=benchmark.files[name])
    parser.add_argument(
        "--answers", type=Path, required=not benchmark.answers_in_files, help="answer file, JSON lines"
    )
    parser.set_defaults(run=score, benchmark=benchmark)


def _apart(name: str) -> str:
    return "question_images" if name == TRAINING_IMAGES else name


def answer(arguments: argparse.Namespace) -> None:
    """Answer, score, record."""
    from toolkit.evaluate.run import Run, evaluate

    benchmark = arguments.benchmark
    files = {name: getattr(arguments, name) for name in benchmark.inputs}
    prompt = getattr(arguments, "prompt", None)
    run = Run(
        benchmark,
        files,
        arguments.model,
        arguments.output,
        arguments.batch_size,
        prompt,
        arguments.shuffle_images,
        arguments.gpus,
    )
    result = evaluate(run)
    print(f"{benchmark.name}: {result['accuracy']:.2f} % of {counted(result['questions'], 'question')}")


def score(arguments: argparse.Namespace) -> None:
    """Print the score by the contest's rule as one JSON object."""
    benchmark = arguments.benchmark
    files = {name: getattr(arguments, name) for name in benchmark.scored_with}
    show(benchmark, files, benchmark.score(files, arguments.answers, complete=False))


def published(arguments: argparse.Namespace) -> None:
    """Print the figure that papers quote, as `score` in one JSON object."""
    benchmark = BENCHMARKS[arguments.benchmark]
    files = benchmark.official_files(arguments.questions, arguments.answers)
    show(benchmark, files, benchmark.published(files, arguments.answers))


def show(benchmark: Benchmark, files: Files, result: dict[str, Any]) -> None:
    """Print a score, with warnings on stderr."""
    from toolkit.evaluate.answer_file import summary

    for key, (subjects, rest) in WARNED.items():
        if result.get(key) and not (key == "empty" and "unanswered" in result):
            print(f"warning: {counted(result[key], *subjects)} {rest}", file=sys.stderr)
    for warning in benchmark.warnings(files):
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(summary(result)))


def compare(arguments: argparse.Namespace) -> None:
    """Write the comparison and print its table."""
    from toolkit.evaluate.compare import compare as compared
    from toolkit.evaluate.compare import markdown, write_comparison

    result = compared(
        arguments.results, arguments.seed, arguments.resamples, arguments.benchmarks, arguments.seeds
    )
    write_comparison(result, arguments.output, arguments.markdown)
    print(markdown(result), end="")


def strategies(arguments: argparse.Namespace) -> None:
    """Write the table of strategies and print it."""
    from toolkit.studies.learning import learning, markdown, write

    result = learning(arguments.root, arguments.comparison)
    write(result, arguments.output, arguments.markdown)
    print(markdown(result), end="")


def contamination(arguments: argparse.Namespace) -> None:
    """Write what was compared and found; say so on stderr if anything was."""
    from toolkit.data.samples import read_lines
    from toolkit.evaluate.contamination import contamination as compared
    from toolkit.files import write_json

    evaluation = {}
    for benchmark in BENCHMARKS.values():
        files = {name: getattr(arguments, _apart(name)) for name in benchmark.inputs}
        if absent := [flag(_apart(name)) for name, path in files.items() if path is None]:
            if len(absent) < len(files):
                raise UserError(f"{benchmark.title} cannot be compared with: {', '.join(absent)} is missing")
        else:
            evaluation[benchmark.name] = files
    if not evaluation:
        raise UserError(
            "nothing to compare the rows with: give the files of at least one benchmark (--help lists them)"
        )
    if not arguments.images.is_dir():
        raise UserError(f"{arguments.images} is not a folder: name that of the images of {arguments.samples}")
    result = compared(arguments.samples, arguments.images, evaluation, arguments.threads)
    counts, pairs = result["compared"], result["found"]
    if not counts["rows"]:
        raise UserError(f"{arguments.samples} has no sound row: Data-Juicer's jsonl is expected")
    write_json(arguments.output, result)
    if other := sum(1 for _ in read_lines(arguments.samples)) - counts["rows"]:
        print(f"warning: {counted(other, 'line is', 'lines are')} no sound row and left out", file=sys.stderr)
    items = (
        f"{counted(counts['evaluation_images'], 'image')} and {counted(counts['evaluation_texts'], 'text')}"
    )
    print(
        f"{counted(counts['rows'], 'row')} compared with {items} of the evaluation: "
        f"{counted(len(pairs), 'near-duplicate')}"
    )
    if counts["unreadable"]:
        of = counts["images"] + counts["evaluation_images"]
        print(
            f"warning: {counts['unreadable']} of {counted(of, 'image')} cannot be read: at most their bytes "
            "were compared",
            file=sys.stderr,
        )
    if pairs:
        first = f"{pairs[0]['training']} is like {pairs[0]['evaluation']}"
        print(
            f"warning: {first}; take the rows out or say why in solution/exceptions.yaml: "
            f"{arguments.output} has all",
            file=sys.stderr,
        )
    if arguments.look_alikes:
        _look_alikes(arguments, evaluation, result)


def _look_alikes(arguments: argparse.Namespace, evaluation: dict, result: dict) -> None:
    """Write and list the pairs of images that the comparison did not find, for somebody to look at."""
    from toolkit.data.samples import image_file, read_lines, row_problem
    from toolkit.evaluate.look_alikes import look_alikes
    from toolkit.files import write_json
    from toolkit.terminal import printable

    rows = [
        row
        for _, _, row, malformed in read_lines(arguments.samples)
        if not malformed and not row_problem(row)
    ]
    paths = {
        row["images"][0]: image_file(row["images"][0], arguments.images, arguments.samples) for row in rows
    }
    pairs = look_alikes(paths, evaluation, result["found"], arguments.threads)
    write_json(arguments.look_alikes, [pair._asdict() for pair in pairs])
    for pair in pairs:
        print(f"look at these: {printable(pair.training)} and {printable(pair.evaluation)}", file=sys.stderr)
    print(
        f"{counted(len(paths), 'image')} compared by local features: {counted(len(pairs), 'pair')} to look at"
    )
