"""Where tokens, image tokens and labels stand once each <image> has become its image's tokens: integer work,
done on the CPU."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE_INDEX = -100  # labels that carry no loss
IMAGE_TOKEN_INDEX = -200  # stands for one image in input_ids


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; to a GPU through pinned memory, since a copy from anywhere else waits until all
    work before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class TokenRow:
    """One sequence of n tokens: ids [n], IMAGE_TOKEN_INDEX at every image token; labels [n] or None; how many
    images it shows."""

    ids: Tensor
    labels: Tensor | None
    images: int

    @property
    def predictions(self) -> int:
        """Positions that the loss counts: those whose next token has a label."""
        assert self.labels is not None
        return int((self.labels[1:] != IGNORE_INDEX).sum())


def expand(ids: Tensor, labels: Tensor | None, tokens: int, limit: int) -> TokenRow:
    """Repeat each placeholder of ids [l] `tokens` times, without labels, and cut at `limit`."""
    placeholder = (ids == IMAGE_TOKEN_INDEX).numpy()
    # numpy's: torch.repeat_interleave wakes all threads for a few hundred numbers, which takes milliseconds
    # where other processes have the cores
    places = torch.from_numpy(np.arange(len(ids)).repeat(np.where(placeholder, tokens, 1))[:limit])
    ids = ids[places]
    if labels is not None:
        labels = labels[places].masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    return TokenRow(ids, labels, int(placeholder.sum()))


@dataclass(frozen=True)
class Layout:
    """A padded batch of rows.

    ids [B, L], the pad id where no text token stands. mask [B, L] bool. labels [B, L] or None. places [n]:
    flat positions in [B, L] of the image tokens; sources [n]: which of the flat tokens [images x tokens] each
    takes. padded_left: whether rows are padded on the left.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor | None
    places: Tensor
    sources: Tensor
    padded_left: bool

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        ids, mask, places, sources = (
            to_device(part, device) for part in (self.ids, self.mask, self.places, self.sources)
        )
        labels = None if self.labels is None else to_device(self.labels, device)
        return Layout(ids, mask, labels, places, sources, self.padded_left)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """(flat positions [n] whose next token has a label, those labels [n])."""
        assert self.labels is not None
        targets = self.labels[:, 1:]
        rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
        return rows * self.ids.shape[1] + columns, targets[rows, columns]


def stack(rows: list[TokenRow], tokens: int, pad_id: int, side: str) -> Layout:
    """Pad rows on `side`; images are counted through the rows in order, `tokens` each."""
    ids = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence(
        [torch.ones(len(row.ids), dtype=torch.bool) for row in rows], batch_first=True, padding_side=side
    )
    labels = None
    if labelled := [row.labels for row in rows if row.labels is not None]:
        labels = pad_sequence(labelled, batch_first=True, padding_value=IGNORE_INDEX, padding_side=side)
    sources, first = [], 0
    for row in rows:  # image tokens follow each other in a row, and truncation only drops the last
        sources.append(torch.arange(first, first + int((row.ids == IMAGE_TOKEN_INDEX).sum())))
        first += row.images * tokens
    image = ids == IMAGE_TOKEN_INDEX
    return Layout(
        ids.masked_fill(image, pad_id),
        mask,
        labels,
        image.flatten().nonzero().flatten(),
        torch.cat(sources),
        side == "left",
    )
