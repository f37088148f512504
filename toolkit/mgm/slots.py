"""Memory of keys and values: that of sequences which begin together, and the slots in which they go on."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from toolkit.mgm.graphs import Graph
from toolkit.mgm.layout import to_device
from toolkit.mgm.room import COLUMNS

if TYPE_CHECKING:
    from toolkit.mgm.generate import Greedy, PromptState

Row = TypeVar("Row", bound="PromptState")
UNKNOWN = -1  # a token that the device alone knows


class Grown:
    """Keys and values of sequences of one length, [n, heads, length, head_dim] a layer; they grow as tokens
    pass."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = layers or {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What an attention layer calls: append, return all."""
        if layer in self.layers:
            keys, values = (
                torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (keys, values), strict=True)
            )
        self.layers[layer] = keys, values
        return keys, values


class Chosen(Generic[Row]):
    """The next tokens of rows, by slot, at which a GPU may still be working.

    choices, logits: of `Greedy.choices`; places: which of them is each row's.
    """

    def __init__(self, rows: dict[int, Row], places: list[int], choices: Tensor, logits: Tensor) -> None:
        self.rows, self.places, self.choices, self.logits = rows, places, choices, logits
        self.computed: torch.cuda.Event | None = None
        if choices.is_cuda:  # a copy of its own: what is launched later is not waited for
            self.choices = torch.empty(choices.shape, dtype=choices.dtype, pin_memory=True)
            self.choices.copy_(choices, non_blocking=True)
            self.computed = torch.cuda.Event()
            self.computed.record()

    def picks(self, live: dict[int, Row]) -> dict[int, tuple[int, bool]]:
        """The next token of each row that is still in its slot, and whether rounding may have decided it; a
        drawn token is never in doubt."""
        if self.computed:
            self.computed.synchronize()
        likeliest, picked = self.choices.tolist(), {}
        for place, (slot, row) in zip(self.places, self.rows.items(), strict=True):
            if live.get(slot) is row:
                token, doubtful = likeliest[place]
                picked[slot] = (row.draw(self.logits[place]), False) if row.draw else (token, bool(doubtful))
        return picked


class Slots(Generic[Row]):
    """Keys and values of `rows` sequences of any lengths up to `columns`, a multiple of COLUMNS; each starts
    at column 0 of its slot. live: whose they are.

    All slots pass through the decoder in every step, used or not, so that all steps have one shape and a GPU
    replays them as one graph.
    """

    def __init__(self, decoder: "Greedy", rows: int, columns: int) -> None:
        config, weight = decoder.model.config, decoder.model.lm_head.weight
        shape = (
            2,
            config.num_hidden_layers,
            rows,
            config.num_key_value_heads,
            columns,
            config.head_dim,
        )
        self.decoder, self.rows = decoder, rows
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.all_slots = torch.arange(rows, device=weight.device)
        self.given = torch.zeros((2, rows), dtype=torch.int64, device=weight.device)
        self.ends = self.given[1]
        self.last = torch.zeros(rows, dtype=torch.int64, device=weight.device)  # chosen by the step before
        self.seen = 0  # columns that the present step looks at
        self.graphs: dict[int, Graph[tuple[Tensor, Tensor]]] = {}  # the step, by `seen`
        self.begun: list[Chosen[Row]] = []  # first tokens, of the pass before
        self.stepped: Chosen[Row] | None = None  # those of a step that runs ahead
        self.beginnings: dict[int, Graph[None] | None] = {}  # `Greedy._show`, by pictures; None: it ran once
        self.live: dict[int, Row] = {}

    def clear(self) -> None:
        """Forget whose the slots were."""
        self.live.clear()
        self.begun.clear()
        self.stepped = None

    def put(self, slots: Tensor, layer: int, keys: Tensor, values: Tensor) -> None:
        """Copy what sequences begin with, [n, heads, length, head_dim], into their slots."""
        self.keys[layer, slots, :, : keys.shape[2]] = keys
        self.values[layer, slots, :, : keys.shape[2]] = values

    def grown(self, slots: Tensor, length: int) -> Grown:
        """A copy of what the sequences in `slots` begin with."""
        pairs = zip(self.keys[:, :, :, :length], self.values[:, :, :, :length], strict=True)
        return Grown({layer: (keys[slots], values[slots]) for layer, (keys, values) in enumerate(pairs)})

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What an attention layer calls: add one token at each sequence's end, return the columns in use."""
        self.keys[layer, self.all_slots, :, self.ends] = keys[:, :, 0]
        self.values[layer, self.all_slots, :, self.ends] = values[:, :, 0]
        return self.keys[layer, :, :, : self.seen], self.values[layer, :, :, : self.seen]

    def step(self) -> dict[int, tuple[int, bool]]:
        """Feed each live row's last token; `Chosen.picks` by slot.

        Where `Greedy.ahead`, the next step is launched before this one's tokens are read, so that a GPU never
        waits for Python: rows that end by these tokens take part once more, unheeded. Tokens that are drawn
        must be known first.
        """
        ahead = self.decoder.ahead and not any(row.draw for row in self.live.values())
        stepped = self.stepped or self._launch(None)
        self.stepped = self._launch(stepped) if ahead else None
        return stepped.picks(self.live) if stepped else {}

    def _launch(self, before: Chosen[Row] | None) -> Chosen[Row] | None:
        """A step of the live rows, whose last tokens are known or those of the step `before`; None if none
        needs a token beyond these. An idle slot writes its column 0, which `put` overwrites."""
        waiting = before.rows if before else {}
        rows = {
            slot: row
            for slot, row in self.live.items()
            if waiting.get(slot) is not row or len(row.new) + 1 < row.most
        }
        if not rows:
            return None
        tokens, ends = [0] * self.rows, [0] * self.rows
        for slot, row in rows.items():
            tokens[slot] = UNKNOWN if waiting.get(slot) is row else row.new[-1]
            ends[slot] = row.length
            row.length += 1
        self.given.copy_(to_device(torch.tensor([tokens, ends]), self.given.device))
        self.seen = min(-(-(max(ends) + 1) // COLUMNS) * COLUMNS, self.keys.shape[3])
        return Chosen(rows, list(rows), *(self._replay() if self.decoder.graphs else self._forward()))

    def _forward(self) -> tuple[Tensor, Tensor]:
        tokens = torch.where(self.given[0] == UNKNOWN, self.last, self.given[0])
        mask = torch.arange(self.seen, device=self.ends.device) <= self.ends[:, None]
        embeds = self.decoder.model.model.embed_tokens(tokens[:, None])
        hidden = self.decoder.pass_through(embeds, self.ends[:, None], mask[:, None, None], self)
        choices, logits = self.decoder.choices(hidden[:, 0])
        self.last.copy_(choices[:, 0])
        return choices, logits

    def _replay(self) -> tuple[Tensor, Tensor]:
        if self.seen not in self.graphs:
            last = self.last.clone()
            self._forward()
            self.last.copy_(last)
            self.graphs[self.seen] = Graph(self.decoder.pool, self._forward)
        return self.graphs[self.seen]()


class Placed:
    """Puts what attention layers compute of sequences' beginnings into slots."""

    def __init__(self, memory: Slots, slots: Tensor) -> None:
        self.memory, self.slots = memory, slots

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What an attention layer calls."""
        self.memory.put(self.slots, layer, keys, values)
        return keys, values
