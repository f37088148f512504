"""`python -m toolkit data import | score | plan | synthesize | check | convert | analyze | compare | card |
influence | study | strategies | influence-study`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from toolkit.arguments import Output, at_least_one, output_folder, processes, seed
from toolkit.counted import counted
from toolkit.data.samples import QUESTION_TOKENS
from toolkit.errors import UserError

SHOWN = 20  # problems printed; all of them are in check.json


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs."""
    p = subparsers.add_parser(
        "import", help="make a seed set of images with captions in one of five formats", allow_abbrev=False
    )
    p.add_argument(
        "source", type=Path, help="jsonl, LLaVA's or COCO's json, WebDataset's tar, or a folder with metadata"
    )
    p.add_argument(
        "output", type=Path, help="folder that becomes the seed set; `assets adopt` gives it a name"
    )
    p.add_argument(
        "--images", type=Path, help="the folder that image paths are relative to (that of the source)"
    )
    p.add_argument("--processes", type=processes, default=1, help="processes that decode images (1)")
    p.set_defaults(run=_import)

    p = subparsers.add_parser(
        "score", help="compute and keep every statistic that a recipe asks for", allow_abbrev=False
    )
    p.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="Data-Juicer YAML of solution/recipes; its thresholds do not matter",
    )
    _run_arguments(p)
    p.add_argument("--output", type=Output, required=True, help="what was computed, json")
    p.set_defaults(run=_score)

    p = subparsers.add_parser(
        "plan", help="print what of a recipe decides its statistics, as a recipe", allow_abbrev=False
    )
    p.add_argument("recipe", type=Path, help="Data-Juicer YAML of solution/recipes")
    p.set_defaults(run=_plan)

    p = subparsers.add_parser(
        "synthesize", help="run a Data-Juicer recipe over the seed rows", allow_abbrev=False
    )
    p.add_argument("--recipe", type=Path, required=True, help="Data-Juicer YAML of solution/recipes")
    _run_arguments(p)
    p.add_argument("--output", type=Output, required=True, help="kept rows, jsonl")
    p.add_argument("--removed", type=Output, required=True, help="all other rows with their reasons, jsonl")
    p.add_argument("--record", type=Output, required=True, help="the record, run.json")
    p.set_defaults(run=_synthesize)

    p = subparsers.add_parser(
        "check", help="check rows, tokens, ids and images before training", allow_abbrev=False
    )
    p.add_argument("--samples", type=Path, required=True, help="rows, Data-Juicer jsonl")
    p.add_argument("--images", type=Path, required=True, help="the folder that image paths are relative to")
    p.add_argument("--original", type=Path, required=True, help="the seed's LLaVA json")
    p.add_argument(
        "--question-tokens",
        type=at_least_one,
        default=QUESTION_TOKENS,
        help=f"most tokens of a question ({QUESTION_TOKENS})",
    )
    p.add_argument("--output", type=Output, required=True, help="counts and problems, json")
    p.set_defaults(run=_check)

    p = subparsers.add_parser(
        "convert", help="convert rows to LLaVA's json, as the contest's kit does", allow_abbrev=False
    )
    p.add_argument("--to", choices=["llava"], required=True, help="target format")
    p.add_argument(
        "--original", type=Path, required=True, help="the seed's LLaVA json, where the questions come from"
    )
    p.add_argument("--cap", type=int, help="at most so many rows, sampled with the kit's seed")
    p.add_argument(
        "--question-tokens",
        type=at_least_one,
        default=QUESTION_TOKENS,
        help=f"most tokens of a question ({QUESTION_TOKENS})",
    )
    p.add_argument("samples", type=Path, help="rows, Data-Juicer jsonl")
    p.add_argument("output", type=Output, help="LLaVA json")
    p.set_defaults(run=_convert)

    p = subparsers.add_parser(
        "analyze", help="numbers, figures and a gallery of a data set", allow_abbrev=False
    )
    p.add_argument("samples", type=Path, help="rows, Data-Juicer jsonl")
    p.add_argument("--images", type=Path, required=True, help="the folder that image paths are relative to")
    p.add_argument("--removed", type=Path, help="the other rows with their reasons, for the gallery")
    p.add_argument("--record", type=Path, help="run.json of `data synthesize`, for the gallery's funnel")
    p.add_argument("--seed-samples", type=Path, help="seed rows, for the captions before")
    p.add_argument("--influence", type=Path, help="influence.jsonl of `data influence`, for the gallery")
    p.add_argument("--processes", type=processes, default=1, help="processes that decode images (1)")
    p.add_argument(
        "--output",
        type=output_folder,
        required=True,
        help="folder for statistics.json, figures/ and index.html",
    )
    p.set_defaults(run=_analyze)

    p = subparsers.add_parser(
        "compare", help="two data sets side by side, with intervals", allow_abbrev=False
    )
    p.add_argument("a", type=Path, help="rows, Data-Juicer jsonl")
    p.add_argument("b", type=Path, help="rows, Data-Juicer jsonl")
    p.add_argument(
        "--images", type=Path, required=True, help="the folder that image paths of both are relative to"
    )
    p.add_argument("--output", type=Output, required=True, help="the numbers, json")
    p.add_argument("--markdown", type=Output, required=True, help="the printed table, Markdown")
    p.set_defaults(run=_compare)

    p = subparsers.add_parser(
        "card", help="write README.md, a dataset card, beside an experiment's rows", allow_abbrev=False
    )
    p.add_argument("folder", type=Path, help="an experiment's data, output/processed_data/NAME")
    p.add_argument("--tokenizer", type=Path, help="language model's folder, whose tokens are counted")
    p.set_defaults(run=_card)

    p = subparsers.add_parser(
        "influence", help="what each pretraining row does to each benchmark", allow_abbrev=False
    )
    p.add_argument("--samples", type=Path, required=True, help="rows, LLaVA json; trained on or not")
    p.add_argument("--images", type=Path, required=True, help="the folder that image paths are relative to")
    p.add_argument("--pretrained", type=Path, required=True, help="output folder of `train pretrain`")
    p.add_argument("--llm", type=Path, required=True, help="language model's folder")
    p.add_argument("--clip", type=Path, required=True, help="CLIP folder")
    p.add_argument("--convnext", type=Path, required=True, help="open_clip ConvNeXt folder")
    p.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds a folder of official files for each benchmark; not those that experiments are scored on",
    )
    p.add_argument(
        "--output",
        type=output_folder,
        required=True,
        help="folder for influence.jsonl, influence.json, influence.md",
    )
    p.set_defaults(run=_influence)

    p = subparsers.add_parser(
        "influence-study",
        help="influence on the embedded world against training again without groups of rows",
        allow_abbrev=False,
    )
    p.add_argument(
        "--seeds", type=seed, nargs="+", default=[1024, 7, 8], metavar="N", help="of the training (1024 7 8)"
    )
    p.add_argument(
        "--output",
        type=output_folder,
        default=Path("output/influence-study"),
        help="folder of the world, the runs (a run that is there is not made again), study.json and study.md",
    )
    p.set_defaults(run=_influence_study)

    p = subparsers.add_parser(
        "study",
        help="the recipes on the embedded world: what becomes of its planted defects",
        allow_abbrev=False,
    )
    p.add_argument(
        "--output",
        type=output_folder,
        default=Path("output/data-study"),
        help="folder of the runs, study.json and study.md",
    )
    p.add_argument(
        "--recipes", nargs="+", default=[], metavar="NAME", help="recipes of solution/recipes (all)"
    )
    _models(p, ", beside or in place of the zoo's")
    p.add_argument("--rows", type=at_least_one, help="rows of the world's seed set (6,000)")
    p.add_argument(
        "--processes", type=processes, default=1, help="processes (1); the result does not depend on it"
    )
    p.set_defaults(run=_study)

    p = subparsers.add_parser(
        "strategies", help="recipes over one seed set beside random rows of equal number", allow_abbrev=False
    )
    p.add_argument("--samples", type=Path, required=True, help="seed rows, Data-Juicer jsonl")
    p.add_argument("--images", type=Path, required=True, help="the folder that image paths are relative to")
    _models(p)
    p.add_argument(
        "--recipes", nargs="+", default=[], metavar="NAME", help="recipes of solution/recipes (all)"
    )
    p.add_argument(
        "--results",
        type=Path,
        help="compare.json of `evaluate compare`, for the scores of experiments named like recipes",
    )
    p.add_argument(
        "--questions",
        type=Path,
        metavar="DIR",
        help="holds a folder of official files for each benchmark, which no row may repeat",
    )
    p.add_argument(
        "--processes", type=processes, default=1, help="processes (1); the result does not depend on it"
    )
    p.add_argument(
        "--output",
        type=output_folder,
        default=Path("output/strategies"),
        help="folder of the runs, strategies.json and strategies.md",
    )
    p.set_defaults(run=_strategies)


def _run_arguments(p: argparse.ArgumentParser) -> None:
    """What `score` and `synthesize` have in common."""
    p.add_argument("--samples", type=Path, required=True, help="seed rows, Data-Juicer jsonl")
    p.add_argument("--images", type=Path, required=True, help="the folder that image paths are relative to")
    _models(p)
    p.add_argument(
        "--processes", type=processes, default=1, help="processes (1); the result does not depend on it"
    )
    p.add_argument(
        "--executor", choices=["local", "ray"], default="local", help="where operators run (local); likewise"
    )
    p.add_argument(
        "--scores",
        type=Path,
        default=Path("output/scores"),
        help="folder of the statistics that are kept (output/scores)",
    )


def _models(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--model",
        type=_model,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"folder for the token {{NAME}}{more}; repeatable",
    )


def _model(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name.isidentifier() and equals and folder):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR")
    return name, Path(folder)


def _run(arguments: argparse.Namespace) -> Any:
    from toolkit.data.synthesize import Run

    return Run(
        arguments.recipe,
        arguments.samples,
        arguments.images,
        dict(arguments.model),
        arguments.processes,
        arguments.executor,
        arguments.scores,
    )


def _import(arguments: argparse.Namespace) -> None:
    from toolkit.data.importer import REJECTED, import_seed

    counts = import_seed(arguments.source, arguments.output, arguments.images, arguments.processes)
    parts = [f"{counted(counts.rows, 'row')} of {counted(counts.images, 'image')} in {arguments.output}"]
    if counts.renamed:
        parts.append(f"{counted(counts.renamed, 'row')} with the id of an earlier row got another")
    if counts.rejected:
        parts.append(f"{counted(counts.rejected, 'row')} rejected, see {arguments.output / REJECTED}")
    print(", ".join(parts))


def _score(arguments: argparse.Namespace) -> None:
    from toolkit.data.synthesize import score

    print(f"{counted(score(_run(arguments), arguments.output), 'row')} scored")


def _plan(arguments: argparse.Namespace) -> None:
    from toolkit.data.recipe.plan import plan

    print(plan(arguments.recipe))


def _synthesize(arguments: argparse.Namespace) -> None:
    from toolkit.data.synthesize import synthesize

    counts = synthesize(_run(arguments), arguments.output, arguments.removed, arguments.record)
    written = counts["rows_written"]
    kept = f"{counts['kept']} kept" + f" as {counted(written, 'row')}" * (written != counts["kept"])
    print(
        f"{counted(counts['read'], 'row')} read, {kept} ({counts['captions_changed']} with a new caption), "
        f"{counts['removed']} removed, {counts['quarantined']} quarantined"
    )


def _influence(arguments: argparse.Namespace) -> None:
    from toolkit.train.influence import influence, markdown
    from toolkit.train.inputs import BaseModels

    base = BaseModels(arguments.llm, arguments.clip, arguments.convnext)
    summary = influence(
        arguments.samples,
        arguments.images,
        arguments.pretrained,
        base,
        arguments.questions,
        arguments.output,
    )
    print(markdown(summary), end="")


def _influence_study(arguments: argparse.Namespace) -> None:
    from toolkit.studies.retraining import markdown, study

    print(markdown(study(arguments.output, arguments.seeds)), end="")


def _study(arguments: argparse.Namespace) -> None:
    from toolkit.studies.defects import markdown, study

    models, rows = dict(arguments.model), arguments.rows
    print(
        markdown(study(arguments.output, arguments.recipes, models, rows, arguments.processes)),
        end="",
    )


def _strategies(arguments: argparse.Namespace) -> None:
    from toolkit.studies.strategies import markdown, strategies

    seed = arguments.samples, arguments.images, dict(arguments.model)
    print(
        markdown(
            strategies(
                *seed,
                arguments.recipes,
                arguments.results,
                arguments.questions,
                arguments.processes,
                arguments.output,
            )
        ),
        end="",
    )


def _assert_recorded(samples: Path) -> None:
    """UserError for rows that are not those of the record beside them: they would be trained on, and refused
    at the end."""
    from toolkit.contest.records import read_record

    record = samples.with_name("run.json")
    if samples.name == "processed_data.jsonl" and record.is_file():
        read_record(record, "synthesize").output(samples, "processed_data")


def _check(arguments: argparse.Namespace) -> None:
    from toolkit.data.check import check

    _assert_recorded(arguments.samples)
    report = check(
        arguments.samples, arguments.images, arguments.original, arguments.output, arguments.question_tokens
    )
    folder = arguments.images
    _list(report.problems, "problem")
    _list(report.set_aside, "row is left out of training", "rows are left out of training")
    _list(report.outside, f"image is a link out of {folder}", f"images are links out of {folder}")
    if count := len(report.problems):
        raise UserError(
            f"{arguments.samples} has {counted(count, 'problem')}, all listed in {arguments.output}"
        )


def _list(lines: list[str], singular: str, several: str = "") -> None:
    """The first few of many on stderr, with their number."""
    if lines:
        print(
            "\n".join(
                [f"{counted(len(lines), singular, several)}:", *lines[:SHOWN], *["…"] * (len(lines) > SHOWN)]
            ),
            file=sys.stderr,
        )


def _convert(arguments: argparse.Namespace) -> None:
    from toolkit.data.convert import convert

    _assert_recorded(arguments.samples)
    rows, quarantined = convert(
        arguments.samples, arguments.original, arguments.output, arguments.cap, arguments.question_tokens
    )
    _list(quarantined, "rows are left out of training")
    print(f"{counted(rows, 'row')} in {arguments.output}")


def _analyze(arguments: argparse.Namespace) -> None:
    from toolkit.data.analysis.analyze import analyze

    optional = arguments.removed, arguments.record, arguments.seed_samples, arguments.influence
    statistics = analyze(
        arguments.samples, arguments.images, arguments.output, arguments.processes, *optional
    )
    distinct, words = statistics.same_caption.distinct, statistics.text.words.mean
    captions = f"{counted(distinct, 'distinct caption')} of {words:.2f} words on average"
    images = f"{statistics.images.readable} of {counted(statistics.images.files, 'image')} readable"
    print(
        f"{counted(statistics.lines, 'line')}, {counted(statistics.rows, 'valid row')}, {captions}, "
        f"{images}: see {arguments.output / 'index.html'}"
    )


def _compare(arguments: argparse.Namespace) -> None:
    from toolkit.data.analysis.compare import compare

    print(compare(arguments.a, arguments.b, arguments.images, arguments.output, arguments.markdown), end="")


def _card(arguments: argparse.Namespace) -> None:
    from toolkit.export.data_card import data_card
    from toolkit.files import write_text

    output = arguments.folder / "README.md"
    if output.exists():
        raise UserError(f"{output} exists: delete it, or move it away, and it is written anew")
    write_text(output, data_card(arguments.folder, arguments.tokenizer))
    print(
        f"{output}: read it, then `hf upload NAME/{arguments.folder.resolve().name} {arguments.folder} "
        "--repo-type dataset` publishes the folder"
    )
