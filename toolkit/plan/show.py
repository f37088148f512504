"""An outlook, and what came of it, as tables and as values for JSON."""

import csv
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.plan.predict import HOURS, Outlook, Prediction, disk, minutes
from toolkit.terminal import console, printable
from toolkit.train.memory import GIB

BENCHMARKS = Path("output/benchmarks")
NUMBER = re.compile(r"\d+(\.\d+)?")


def span(outlook: Outlook) -> str:
    """The whole with its bounds, in the same unit."""
    least, most = outlook.bounds
    if most < HOURS:
        return f"{minutes(outlook.seconds)} min ({minutes(least)} to {minutes(most)})"
    return f"{outlook.seconds / 3600:.1f} h ({least / 3600:.1f} to {most / 3600:.1f})"


def rules(outlook: Outlook) -> list[list[Prediction]]:
    """Predictions by rule and work, in running order; rules whose work is always the same go together."""
    return [
        list(group)
        for _, group in groupby(
            _ordered(outlook.predictions), key=lambda each: (each.job.text and each.job.rule, each.job.text)
        )
    ]


def _label(group: list[Prediction]) -> str:
    """A rule's name, or the first's and the last's of several."""
    first, last = group[0].job.rule, group[-1].job.rule
    return first if first == last else f"{first} to {last}"


def _ordered(predictions: list[Prediction]) -> list[Prediction]:
    """The runs of a rule together, those of equal work beside each other."""
    order = list(dict.fromkeys(each.job.rule for each in predictions))
    texts = list(dict.fromkeys(each.job.text for each in predictions))
    return sorted(predictions, key=lambda each: (order.index(each.job.rule), texts.index(each.job.text)))


def show(outlook: Outlook, title: str) -> None:
    """Print the outlook."""
    columns = ("rule", "runs", "work", "minutes", "GPU, GiB", "host, GiB", "disk, GB")
    rows = [
        (
            _label(group),
            str(len(group)),
            group[0].job.text,
            "?" if (seconds := _sum(each.seconds for each in group)) is None else minutes(seconds),
            _amount(max(each.device for each in group) / GIB),
            _amount(max(each.host for each in group) / GIB),
            _amount(disk(group) / 1e9),
        )
        for group in rules(outlook)
    ]
    cards = f"{outlook.gpus} x {outlook.card.title}" if outlook.gpus > 1 else outlook.card.title
    _print(f"{title} on {cards}", columns, rows)
    disk_space = f"{_amount(outlook.disk / 1e9)} GB on the disk"
    print(f"the whole: {span(outlook)}, {disk_space}; memory is the least that works")
    for note in [*outlook.notes, *outlook.problems]:
        print(f"- {printable(note)}")


def values(outlook: Outlook) -> dict[str, Any]:
    """The outlook for JSON; seconds and bytes."""
    return {
        "card": outlook.card.name,
        "gpus": outlook.gpus,
        "seconds": outlook.seconds,
        "least": outlook.bounds[0],
        "most": outlook.bounds[1],
        "disk": outlook.disk,
        "rules": [
            {
                "rule": _label(group),
                "runs": len(group),
                "work": group[0].job.text,
                "seconds": _sum(each.seconds for each in group),
                "error": group[0].error,
                "gpu_bytes": max(each.device for each in group),
                "host_bytes": max(each.host for each in group),
                "disk_bytes": disk(group),
            }
            for group in rules(outlook)
        ],
        "notes": outlook.notes,
        "problems": outlook.problems,
    }


def recorded(folder: Path = BENCHMARKS) -> dict[str, float]:
    """Seconds of every job that Snakemake has recorded, by the name of its file."""
    seconds = {}
    for path in sorted(folder.rglob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                if NUMBER.fullmatch(row.get("s") or ""):  # Snakemake also writes NA
                    seconds[path.relative_to(folder).with_suffix("").as_posix()] = float(row["s"])
    return seconds


def actual(outlook: Outlook, title: str, seconds: dict[str, float]) -> None:
    """Print predicted against actual seconds of the jobs that ran. UserError where none did."""
    pairs = compared(outlook, seconds)
    if not pairs:
        raise UserError(f"{BENCHMARKS} has no file of this configuration's work: run it first")
    rows = [
        (rule, str(runs), f"{predicted:.0f}", f"{took:.0f}", f"{predicted / took:.2f}")
        for rule, runs, predicted, took in pairs
    ]
    total = [sum(column) for column in list(zip(*pairs, strict=True))[1:]]
    rows.append(("all", str(total[0]), f"{total[1]:.0f}", f"{total[2]:.0f}", f"{total[1] / total[2]:.2f}"))
    columns = ("rule", "runs", "predicted, s", "actual, s", "predicted / actual")
    _print(f"{title} on {outlook.card.title}", columns, rows)
    print("seconds of the rules added up, not by the clock; a resumed run counts from where it resumed")


def compared(outlook: Outlook, seconds: dict[str, float]) -> list[tuple[str, int, float, float]]:
    """(rule, runs, predicted seconds, actual seconds) of the jobs whose seconds are known on both sides."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for each in _ordered(outlook.predictions):
        if each.seconds is not None and each.job.name in seconds:
            pairs.setdefault(each.job.rule, []).append((each.seconds, seconds[each.job.name]))
    return [
        (rule, len(some), sum(predicted for predicted, _ in some), sum(took for _, took in some))
        for rule, some in pairs.items()
    ]


def _print(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("rule", "work") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def _sum(seconds: Iterable[float | None]) -> float | None:
    """The sum, None where all are unknown."""
    known = [each for each in seconds if each is not None]
    return sum(known) if known else None


def _amount(value: float) -> str:
    """A size with one digit behind the point; nothing for nothing."""
    return "" if value == 0 else "<0.1" if value < 0.05 else f"{value:.1f}"
