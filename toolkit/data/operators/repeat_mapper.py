"""Every row several times: the contest allows repeated rows, and fills one epoch up to its cap."""

from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper
from pydantic import PositiveInt

NAME = "repeat_mapper"


@OPERATORS.register_module(NAME)
class RepeatMapper(Mapper):
    """Make `times` equal rows (2) of each, one after the other."""

    _batched_op = True
    _reads = "text"

    def __init__(self, times: PositiveInt = 2, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if times < 1:
            raise ValueError(f"times is {times}, it must be at least 1")
        self.times = times

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """The batch with every field of a row repeated."""
        return {
            name: [value for value in values for _ in range(self.times)] for name, values in samples.items()
        }
