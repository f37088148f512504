"""All audited entries as a table on the terminal, and as one page for an organiser."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.audit.audit import Audit, Model
from toolkit.bundle.findings import ERROR, WARNING

TEMPLATE = Path(__file__).with_name("page.html.j2")
HEADER = ("entry", "model", "rows", "steps", "GPUs", "seconds", "loss", "answers", "different", "scores")


def row(audit: Audit, model: Model) -> list[str]:
    """The cells of HEADER; two figures are those of pretraining and finetuning, or of TextVQA and MMBench."""
    cells: list[Any] = [
        audit.title,
        model.name,
        model.rows,
        model.steps,
        model.gpus,
        model.seconds,
        model.losses,
    ]
    return [_cell(value) for value in [*cells, model.answers, model.different, model.scores]]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{key} {_cell(figure)}" for key, figure in value.items()) or "-"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def table(audits: list[Audit]) -> Table:
    """One line a model, with the number of findings of its entry."""
    result = Table(title="Audited entries", title_justify="left", show_lines=True)
    for name in (*HEADER, "errors", "warnings"):
        result.add_column(name, overflow="fold")
    for audit in audits:
        counts = [str(audit.count(severity)) for severity in (ERROR, WARNING)]
        for model in audit.models or [Model("-")]:
            result.add_row(*map(Text, [*row(audit, model), *counts]))
    return result


def html(audits: list[Audit]) -> str:
    """A page without scripts and foreign references; texts of the entries are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(audits=audits, header=HEADER, row=row, error=ERROR, warning=WARNING)
