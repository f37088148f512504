"""Orders of training samples: batches of one modality and of like length, equal to the official
LengthGroupedSampler's."""

import torch


def conversation_length(sample: dict) -> int:
    """Words in all turns of a LLaVA sample; negative when it has no image."""
    words = sum(len(turn["value"].split()) for turn in sample["conversations"])
    return words if "image" in sample else -words


def split_to_even_chunks(indices: list[int], lengths: list[int], chunks: int) -> list[list[int]]:
    """Deal `indices` (longest first) to the chunk with the fewest tokens that has room; uneven counts are
    dealt in turn."""
    if len(indices) % chunks:
        return [indices[start::chunks] for start in range(chunks)]
    size = len(indices) // chunks
    parts: list[list[int]] = [[] for _ in range(chunks)]
    loads = [0.0] * chunks
    for index in indices:
        shortest = loads.index(min(loads))
        parts[shortest].append(index)
        loads[shortest] = loads[shortest] + lengths[index] if len(parts[shortest]) < size else float("inf")
    return parts


def length_grouped(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """A random order in which every `world_size * batch_size` neighbours are sorted by length and dealt
    evenly to the devices."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = world_size * batch_size
    megabatches = [order[start : start + size] for start in range(0, len(order), size)]
    megabatches = [sorted(batch, key=lambda index: lengths[index], reverse=True) for batch in megabatches]
    return [
        index
        for batch in megabatches
        for chunk in split_to_even_chunks(batch, lengths, world_size)
        for index in chunk
    ]


def modality_length_grouped(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """As `length_grouped`, with samples of one modality in each megabatch.

    lengths: words, negative for text-only samples (see `conversation_length`). world_size: devices times
    accumulation steps. What does not fill a megabatch in either modality comes last. Source: the official
    LengthGroupedSampler (LLaVA).
    """
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        return length_grouped([abs(length) for length in lengths], batch_size, world_size, generator)
    size = world_size * batch_size

    def megabatches(indices: list[int]) -> list[list[int]]:
        order = length_grouped([abs(lengths[index]) for index in indices], batch_size, world_size)
        return [
            [indices[position] for position in order[start : start + size]]
            for start in range(0, len(order), size)
        ]

    with_image = megabatches([index for index, length in enumerate(lengths) if length > 0])
    text_only = megabatches([index for index, length in enumerate(lengths) if length < 0])
    incomplete = with_image[-1] + text_only[-1]
    complete = with_image[:-1] + text_only[:-1]
    shuffled = [
        complete[position] for position in torch.randperm(len(complete), generator=generator).tolist()
    ]
    if incomplete:
        shuffled.append(sorted(incomplete))
    return [index for batch in shuffled for index in batch]
