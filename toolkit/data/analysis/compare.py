"""Two data sets side by side: every measure of both, and whether their difference is more than the choice of
rows.

    python -m toolkit data compare A.jsonl B.jsonl --images input/world-seed --output compare.json --markdown
    compare.md

Intervals come from random halves of the ids of both (toolkit/data/analysis/diversity.py says why no
bootstrap): rows that both data sets made from one seed row are taken or left together, so what they share
does not blur the difference. Only measures that do not depend on the number of rows are compared.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy

from toolkit.contest.records import relative
from toolkit.counted import counted
from toolkit.data.analysis import diversity
from toolkit.data.analysis.diversity import Corpus
from toolkit.data.analysis.rows import Rows, read_headers, read_rows
from toolkit.data.analysis.shape import Comparison, Difference
from toolkit.data.analysis.statistics import null_if_undefined, script
from toolkit.files import write_json, write_text
from toolkit.tables import markdown as markdown_table

KIB = 1024  # bytes


def compare(a: Path, b: Path, images: Path, output: Path, markdown: Path) -> str:
    """Write compare.json and the table; return the table. UserError where a file has no valid row."""
    data_sets = [read_rows(path, images) for path in (a, b)]
    functions = measures_of_rows(data_sets)
    everything = [numpy.ones(len(rows.ids), dtype=bool) for rows in data_sets]
    values = numpy.array(
        [
            [measure(mask) for measure, mask in zip(pair, everything, strict=True)]
            for pair in functions.values()
        ]
    )
    half_differences = []  # [halves][measures]: differences
    for mask in diversity.halves([*data_sets[0].ids, *data_sets[1].ids]):
        masks = mask[: len(data_sets[0].ids)], mask[len(data_sets[0].ids) :]
        half_differences.append([pair[1](masks[1]) - pair[0](masks[0]) for pair in functions.values()])
    differences = {}
    for name, (value_a, value_b), of_halves in zip(
        functions, values, numpy.array(half_differences).T, strict=True
    ):
        difference, reach = value_b - value_a, diversity.spread(of_halves)
        differences[name] = Difference(
            a=null_if_undefined(value_a),
            b=null_if_undefined(value_b),
            difference=null_if_undefined(difference),
            low=null_if_undefined(difference - reach),
            high=null_if_undefined(difference + reach),
            verdict="higher" if difference > reach else "lower" if difference < -reach else "undecided",
        )
    comparison = Comparison(
        a=relative(a),
        b=relative(b),
        rows_a=len(data_sets[0].ids),
        rows_b=len(data_sets[1].ids),
        other_lines_a=len(data_sets[0].problems),
        other_lines_b=len(data_sets[1].problems),
        ids_in_both=len(set(data_sets[0].ids) & set(data_sets[1].ids)),
        halves=diversity.HALVES,
        seed=diversity.SEED,
        measures=differences,
    )
    text = table(comparison)
    write_json(output, comparison.model_dump())
    write_text(markdown, text)
    return text


def measures_of_rows(data_sets: list[Rows]) -> dict[str, list[Callable[[numpy.ndarray], float]]]:
    """By name: the measure of the first and of the second data set, each a function of a mask of its rows."""
    headers = read_headers([*data_sets[0].files, *data_sets[1].files])
    columns: list[dict[str, list[float]]] = []  # of each data set: a number a row, NaN where there is none
    for rows in data_sets:
        sizes = [headers.get(file) for file in rows.files]
        columns.append(
            {
                "words a caption": [len(caption.split()) for caption in rows.captions],
                "characters a caption": [len(caption) for caption in rows.captions],
                "captions in Latin script, %": [
                    100 * (script(caption) == "Latin") for caption in rows.captions
                ],
                "image width, px": [size.width if size else numpy.nan for size in sizes],
                "image height, px": [size.height if size else numpy.nan for size in sizes],
                "image file, KiB": [size.bytes / KIB if size else numpy.nan for size in sizes],
            }
        )
    measures = {name: [_mean(column[name]) for column in columns] for name in columns[0]}
    corpora = [Corpus(rows.captions) for rows in data_sets]
    for name, measure in diversity.measures(*corpora).items():
        measures[name] = [partial(measure.of, corpus) for corpus in corpora]
    return measures


def _mean(column: list[float]) -> Callable[[numpy.ndarray], float]:
    values = numpy.array(column, dtype=float)
    finite = numpy.isfinite(values)

    def mean(mask: numpy.ndarray) -> float:
        selected = values[mask & finite]
        return float(selected.mean()) if len(selected) else float("nan")

    return mean


def table(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    rows = []
    for name, row in comparison.measures.items():
        a, b, difference, low, high = (
            "none" if value is None else f"{value:{sign}.2f}"
            for value, sign in zip(
                (row.a, row.b, row.difference, row.low, row.high), ("", "", "+", "+", "+"), strict=True
            )
        )
        interval = "none" if row.low is None else f"{low} to {high}"
        rows.append([name, a, b, difference, interval, row.verdict])
    lines = [
        f"A: {comparison.a}, {_size(comparison.rows_a, comparison.other_lines_a)}",
        f"B: {comparison.b}, {_size(comparison.rows_b, comparison.other_lines_b)}; "
        f"{counted(comparison.ids_in_both, 'id')} in both",
        "",
        markdown_table(["measure", "A", "B", "B - A", "95 % interval", "B is"], rows),
        f"Intervals from {comparison.halves} random halves of the ids, seed {comparison.seed}: they speak "
        "of the choice of rows.",
        "Of each measure only as much is compared as does not depend on the number of rows.",
    ]
    return "\n".join(lines) + "\n"


def _size(rows: int, others: int) -> str:
    left_out = f" ({counted(others, 'line is', 'lines are')} no valid row)" if others else ""
    return f"{counted(rows, 'row')}{left_out}"
