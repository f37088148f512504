"""The one writer of Markdown tables."""

from collections.abc import Iterable
from typing import Any


def markdown(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table, with a line end after its last row. Cells are written as they are: texts of others have to be
    escaped before."""
    lines = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    rendered = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rendered[0], "|" + "---|" * len(lines[0]), *rendered[1:], ""])
