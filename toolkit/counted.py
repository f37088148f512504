"""Numbers in sentences."""

from typing import Any


def counted(number: Any, singular: str, several: str = "", form: str = "") -> str:
    """1 row, 2 rows: `several` is by default `singular` with an s, and may hold a verb ("questions have").

    number: of any kind, for a stranger's record may say anything. form: of the number, as format() has it.
    """
    return f"{number:{form}} {singular if number == 1 else several or f'{singular}s'}"
