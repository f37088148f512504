"""How many prompts a GPU's memory holds at once; no torch, no GPU.

Beside the weights each prompt has its keys and values, and each of those that begin together what the towers
and the decoder compute of it.
"""

from dataclasses import dataclass

# prompts that begin at once: as fast as more on a GPU
CHUNK = 16
# the memory of keys and values is read in multiples of so many tokens, each of which costs a graph on a GPU
COLUMNS = 256
# bytes of a prompt while it begins: of 16 an H200 reserved 4.5 GiB beside weights, keys and values of MGM-2B
BEGINNING = int(0.28 * 2**30)
PICTURE = 576  # tokens of that prompt's image


@dataclass(frozen=True)
class Need:
    """What prompts take of a GPU: tokens of the longest with its answer, bytes of a token's keys and values,
    tokens of an image."""

    longest: int
    token: int
    image: int

    def needed(self, count: int) -> int:
        """Bytes that `count` of them take at once."""
        columns = -(-self.longest // COLUMNS) * COLUMNS
        # and those of the prompt that is repeated alone, where rounding may have decided
        kept = (count + (count > 1)) * columns * self.token
        return kept + min(count, CHUNK) * BEGINNING * self.image // PICTURE

    def fitting(self, most: int, room: int) -> int:
        """How many of `most` fit into `room` bytes; 1 where none does."""
        while most > 1 and self.needed(most) > room:
            most -= 1
        return most
