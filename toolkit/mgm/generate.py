"""Greedy continuations of many prompts at once, each equal to what its prompt gets alone.

Prompts that show one picture share its way through the towers and the decoder: everything up to the picture's
last token is the same. The texts after it follow in one padded pass, then all prompts decode together, each
in a slot of the key and value memory; a slot whose prompt has ended takes the next one, so that a long answer
holds nobody up.

Kernels round differently with the number of rows, so the two best tokens of a near-tie may change places.
Where they come closer than rounding can explain (ROUNDING), the prompt is run again in a memory of its own,
while the others go on.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from toolkit.mgm.layout import IMAGE_TOKEN_INDEX, to_device
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import tensors

try:
    from toolkit.mgm.fused import fuse
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    fuse = None  # type: ignore[assignment]

# prompts begun at once: as fast as more on a GPU, and the towers' activations of 16 images stay below 4 GB
CHUNK = 16
# the key and value memory is read in multiples of so many tokens, each of which costs a graph on a GPU
COLUMNS = 256
THREADS = min(8, os.cpu_count() or 1)  # prepare images; decoding and resizing leave Python's lock
AHEAD = 64  # prompts whose images are prepared before their turn
# Largest change of (best - second logit) / (standard deviation of all logits) that is put down to rounding.
ROUNDING = {torch.float16: 0.05, torch.float32: 1e-4}

# on a GPU; cuDNN's, which torch prefers, would be planned anew for each length of a text
ATTENTIONS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
TIES = 256  # passes that look for near-ties of one prompt: an answer of 128 tokens has few


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the place of the image, and the image's name, None without one; equal names
    are the same picture."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    image: Hashable

    @classmethod
    def of(cls, ids: list[int], image: Hashable) -> "Prompt":
        """The prompt of ids with one IMAGE_TOKEN_INDEX, or with none where `image` is None."""
        place = 1 if image is None else ids.index(IMAGE_TOKEN_INDEX)
        return cls(tuple(ids[:place]), tuple(ids[place + (image is not None) :]), image)


@dataclass(eq=False)
class PromptState:
    """A prompt under way: its number, its pixels as they will be (see `Greedy.sent`), new tokens at most,
    tokens it takes in memory, new tokens so far.

    draw: picks a token by the logits [vocabulary]; None: the likeliest. known: new tokens that were certain
    when it was begun again, alone. cancelled: set from anywhere, it frees the slot. ended: why it has,
    "stop", "length" or "cancelled".
    """

    number: int
    prompt: Prompt
    pixels: Future | None
    most: int
    draw: Callable[[Tensor], int] | None = None
    length: int = 0
    new: list[int] = field(default_factory=list)
    known: int = 0
    cancelled: bool = False
    ended: str = ""


Row = TypeVar("Row", bound=PromptState)


class Grown:
    """Keys and values of sequences of one length, [n, heads, length, head_dim] a layer; they grow as tokens
    pass."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What an attention layer calls: append, return all."""
        if layer in self.layers:
            keys, values = (
                torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (keys, values), strict=True)
            )
        self.layers[layer] = keys, values
        return keys, values

    def take(self, rows: Tensor) -> None:
        """Let row i be what row rows[i] was."""
        self.layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.layers.items()}


class Slots(Generic[Row]):
    """Keys and values of `rows` sequences of any lengths up to `columns`; each starts at column 0 of its
    slot. live: whose they are.

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
            -(-columns // COLUMNS) * COLUMNS,
            config.head_dim,
        )
        self.decoder, self.rows = decoder, rows
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.all_slots = torch.arange(rows, device=weight.device)
        self.state = torch.zeros((2, rows), dtype=torch.int64, device=weight.device)
        self.tokens, self.ends = self.state
        self.seen = 0  # columns that the present step looks at
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]] = {}
        self.live: dict[int, Row] = {}

    def put(self, slots: list[int], grown: Grown) -> None:
        """Copy begun sequences into their slots."""
        places = to_device(torch.tensor(slots), self.all_slots.device)
        for layer, (keys, values) in grown.layers.items():
            self.keys[layer, places, :, : keys.shape[2]] = keys
            self.values[layer, places, :, : keys.shape[2]] = values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What an attention layer calls: add one token at each sequence's end, return the columns in use."""
        self.keys[layer, self.all_slots, :, self.ends] = keys[:, :, 0]
        self.values[layer, self.all_slots, :, self.ends] = values[:, :, 0]
        return self.keys[layer, :, :, : self.seen], self.values[layer, :, :, : self.seen]

    def step(self) -> dict[int, tuple[int, bool]]:
        """Feed each live row's last token; `picks` by slot. An idle slot writes its column 0, which `put`
        overwrites."""
        state = torch.zeros((2, self.rows), dtype=torch.int64)
        for slot, row in self.live.items():
            state[0, slot], state[1, slot] = row.new[-1], row.length
            row.length += 1
        self.state.copy_(to_device(state, self.state.device))
        self.seen = min(-(-(int(state[1].max()) + 1) // COLUMNS) * COLUMNS, self.keys.shape[3])
        return picks(self.live, *(self._replay() if self.decoder.graphs else self._forward()))

    def _forward(self) -> tuple[Tensor, Tensor]:
        mask = torch.arange(self.seen, device=self.ends.device) <= self.ends[:, None]
        embeds = self.decoder.model.model.embed_tokens(self.tokens[:, None])
        hidden = self.decoder.pass_through(embeds, self.ends[:, None], mask[:, None, None], self)
        return self.decoder.choices(hidden[:, 0])

    def _replay(self) -> tuple[Tensor, Tensor]:
        """The step as a CUDA graph, captured once for each number of columns: a launch for each of its
        thousand kernels takes longer."""
        if self.seen not in self.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others send images meanwhile
                choices = self._forward()
            self.graphs[self.seen] = graph, choices
        graph, choices = self.graphs[self.seen]
        graph.replay()
        return choices


class Greedy:
    """A model that continues `batch_size` prompts at once, each up to one of the ids `ends` (default: the
    model's).

    again: prompts that were run a second time, alone. waited, began, decoded: seconds spent waiting for
    images, on prompts, on new tokens.
    """

    def __init__(self, model: MGMForCausalLM, batch_size: int, ends: list[int] | None = None) -> None:
        self.model, self.batch_size, self.ends = model, batch_size, ends or model.ends
        self.graphs = model.device.type == "cuda"
        if self.graphs:  # convolutions as tensor cores read them
            model.model.vision_tower_aux.to(memory_format=torch.channels_last)
            if fuse is not None:
                fuse(model)
        self.again, self.waited, self.began, self.decoded = 0, 0.0, 0.0, 0.0
        self.memory: dict[int, Slots[Any]] = {}

    @torch.inference_mode()
    def run(
        self, prompts: list[Prompt], load: Callable[[int], np.ndarray], max_new_tokens: int
    ) -> Iterator[tuple[int, list[int]]]:
        """(number of the prompt, new ids without the end of sequence) as prompts end.

        load: number of a prompt to its pixels, uint8 [S, S, 3]; called in threads, once for neighbours with
        one picture.
        """
        columns = max((self.length(prompt) for prompt in prompts), default=0) + max_new_tokens
        rows = prepared(prompts, lambda number: self.sent(load(number)), max_new_tokens)
        size = min(CHUNK, self.batch_size)
        for changed in self.follow(lambda free: list(islice(rows, size)) if free >= size else [], columns):
            yield from ((row.number, row.new) for row in changed if row.ended)

    def sent(self, pixels: np.ndarray) -> Tensor:
        """Pixels (uint8 [S, S, 3]) on the model's device. The copy to a GPU waits its turn there: no thread
        waits for it."""
        there, device = torch.from_numpy(pixels), self.model.device
        return there if device.type == "cpu" else there.pin_memory().to(device, non_blocking=True)

    @torch.inference_mode()
    def follow(self, take: Callable[[int], list[Row]], columns: int) -> Iterator[list[Row]]:
        """After each pass through the decoder, the prompts that got a token or ended.

        take: gives the prompts to begin, asked before each pass with the number of free slots; where it gives
        none and nothing is under way, the run ends. columns: tokens, prompt and answer, of the longest.
        """
        many: Slots[Row] = self.slots(self.batch_size, columns)
        doubtful = deque[Row]()
        alone = many if self.batch_size == 1 else None
        while True:
            new = take(many.rows - len(many.live))
            if not (new or many.live or doubtful or (alone and alone.live)):
                return
            changed, unsure = self._pass(many, new)
            for row in unsure:
                self.again += 1
                row.known, row.new = len(row.new), []
                doubtful.append(row)
            if alone is not many and (doubtful or (alone and alone.live)):
                alone = alone or self.slots(1, columns)
                changed += self._pass(alone, [] if alone.live else [doubtful.popleft()])[0]
            yield [row for row in changed if row.ended or len(row.new) > row.known]

    def slots(self, rows: int, columns: int) -> Slots[Any]:
        """Memory for so many sequences of at most so many tokens, that of an earlier run if it suffices."""
        if rows not in self.memory or self.memory[rows].keys.shape[3] < columns:
            self.memory[rows] = Slots(self, rows, columns)
        self.memory[rows].live.clear()
        return self.memory[rows]

    def _pass(self, slots: Slots[Row], new: list[Row]) -> tuple[list[Row], list[Row]]:
        """Begin `new`, or else give each live row its next token. The rows that changed, and those that left
        their slots because rounding may have decided; a row that had the slots for itself is certain."""
        changed, unsure = [], []
        for slot in [slot for slot, row in slots.live.items() if row.cancelled]:
            changed.append(slots.live.pop(slot))
            changed[-1].ended = "cancelled"
        if new:
            tokens = self.begin(slots, new)
        elif slots.live:
            start = time.perf_counter()
            tokens = slots.step()
            self.decoded += time.perf_counter() - start
        else:
            tokens = {}
        for slot, (token, doubtful) in tokens.items():
            row = slots.live[slot]
            if doubtful and slots.rows > 1:
                unsure.append(slots.live.pop(slot))
                continue
            if token in self.ends:
                row.ended = "stop"
            else:
                row.new.append(token)
                row.ended = "length" if len(row.new) == row.most else ""
            if row.ended:
                del slots.live[slot]
            changed.append(row)
        return changed, unsure

    def begin(self, slots: Slots[Row], rows: list[Row]) -> dict[int, tuple[int, bool]]:
        """Pass prompts through towers and decoder into free slots; their `picks` by slot."""
        start = time.perf_counter()
        for row in rows:
            if row.pixels:
                row.pixels.result()
        waited = time.perf_counter()
        self.waited += waited - start
        free = [slot for slot in range(slots.rows) if slot not in slots.live]
        placed = list(zip(free, rows, strict=False))
        slots.live |= placed
        tokens: dict[int, tuple[int, bool]] = {}
        for _, group in groupby(placed, key=lambda pair: (pair[1].prompt.before, pair[1].pixels is None)):
            part, part_rows = zip(*group, strict=True)
            grown, choices, logits = self._prefill(list(part_rows))
            slots.put(list(part), grown)
            chosen = picks(dict(enumerate(part_rows)), choices, logits)
            tokens |= {slot: chosen[place] for place, slot in enumerate(part)}
        self.began += time.perf_counter() - waited
        return tokens

    def _prefill(self, rows: list[PromptState]) -> tuple[Grown, Tensor, Tensor]:
        """Keys and values of rows that begin alike, all with an image or all without, padded on the right;
        their `choices`.

        Sets the rows' lengths.
        """
        device, model = self.model.device, self.model.model
        pictures = list(dict.fromkeys(row.pixels for row in rows))
        begin = rows[0].prompt
        shared = len(begin.before) + (0 if begin.image is None else self.model.tokens_per_image)
        for row in rows:
            row.length = self.length(row.prompt)
        texts = [torch.tensor(row.prompt.after[: row.length - shared]) for row in rows]
        # sent before the GPU has work: a later copy would wait for all of it
        owner = to_device(torch.tensor([pictures.index(row.pixels) for row in rows]), device)
        ends = to_device(torch.tensor([len(text) - 1 for text in texts]), device)
        ids = to_device(pad_sequence(texts, batch_first=True, padding_value=self.model.pad_id), device)
        embeds = self._beginnings(
            begin, [None if picture is None else picture.result() for picture in pictures]
        )
        grown = Grown()
        self.pass_through(embeds, torch.arange(shared, device=device)[None], None, grown)
        grown.take(owner)
        longest = ids.shape[1]
        causal = torch.ones(longest, shared + longest, dtype=torch.bool, device=device).tril(shared)
        positions = torch.arange(shared, shared + longest, device=device)[None]
        hidden = self.pass_through(model.embed_tokens(ids), positions, causal[None, None], grown)
        return grown, *self.choices(hidden[torch.arange(len(rows), device=device), ends])

    def _beginnings(self, prompt: Prompt, pictures: list[Tensor | None]) -> Tensor:
        """[pictures, L, d]: what stands in front of a prompt's text, with each of the pictures."""
        before = to_device(torch.tensor([prompt.before]), self.model.device)
        embeds = self.model.model.embed_tokens(before).expand(len(pictures), -1, -1)
        shown = [picture for picture in pictures if picture is not None]
        if not shown:
            return embeds
        low, high = tensors(torch.stack(shown), self.model.mgm)
        tokens = (
            self.model.image_tokens(low.to(embeds.dtype), high.to(embeds.dtype))
            * self.model.mgm.language.embedding_scale
        )
        return torch.cat([embeds, tokens.to(embeds.dtype)], dim=1)

    @torch.inference_mode()
    def near_ties(
        self, prompt: Prompt, picture: np.ndarray | None, max_new_tokens: int, tolerance: float
    ) -> Iterator[list[int]]:
        """Every continuation that rounding can lead to, TIES passes at most: at each token one whose logit
        comes within `tolerance` standard deviations of the best."""
        begin = self._beginnings(prompt, [None if picture is None else self.sent(picture)])
        after = prompt.after[: self.length(prompt) - begin.shape[1]]
        waiting: list[list[int]] = [[]]
        for _ in range(TIES):
            if not waiting:
                return
            new = waiting.pop()
            text = torch.tensor([[*after, *new]], device=self.model.device)
            embeds = torch.cat([begin, self.model.model.embed_tokens(text)], dim=1)
            positions = torch.arange(embeds.shape[1], device=self.model.device)[None]
            logits = self.logits(self.pass_through(embeds, positions, None, Grown())[:, -1])[0]
            for token in (logits >= logits.max() - tolerance * logits.std()).nonzero()[:, 0].tolist():
                if token in self.ends:
                    yield new
                elif len(new) + 1 == max_new_tokens:
                    yield [*new, token]
                else:
                    waiting.append([*new, token])

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, its image's included, cut at the model's length."""
        image = 0 if prompt.image is None else self.model.tokens_per_image
        return min(len(prompt.before) + image + len(prompt.after), self.model.mgm.model_max_length)

    def pass_through(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | None, memory: Grown | Slots
    ) -> Tensor:
        """[n, L, d] at positions [n or 1, L] through all decoder layers, not yet normalised; mask [n or 1, 1,
        L, seen], None: causal."""
        rope = self.model.model.rotary_emb(embeds, positions)
        with sdpa_kernel(ATTENTIONS) if self.graphs else nullcontext():
            for layer in self.model.model.layers:
                embeds = layer(embeds, attention_mask=mask, position_embeddings=rope, past_key_values=memory)
        return embeds

    def choices(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[n, d] -> [n, 2]: the likeliest token, and 1 where the second is too close to be sure of it; and
        the logits."""
        logits = self.logits(hidden)
        spread, best = logits.std(dim=-1), logits.max(dim=-1)
        second = logits.scatter_(1, best.indices[:, None], float("-inf")).max(dim=-1)
        logits.scatter_(1, best.indices[:, None], best.values[:, None])
        sure = best.values - second.values >= ROUNDING[hidden.dtype] * spread
        return torch.stack([best.indices, (~sure).long()], dim=1), logits

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, vocabulary], float32 sums that were never rounded to half precision, which would make
        ties of near-ties."""
        hidden, weight = self.model.model.norm(hidden), self.model.lm_head.weight
        if hidden.dtype == torch.float32:
            return F.linear(hidden, weight)
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)


def picks(rows: Mapping[int, PromptState], choices: Tensor, logits: Tensor) -> dict[int, tuple[int, bool]]:
    """The next token of each row, by its place in `choices` and `logits`, and whether rounding may have
    decided it; a drawn token is never in doubt."""
    likeliest = choices.tolist()
    return {
        place: (row.draw(logits[place]), False)
        if row.draw
        else (likeliest[place][0], bool(likeliest[place][1]))
        for place, row in rows.items()
    }


def prepared(
    prompts: list[Prompt], load: Callable[[int], Tensor], max_new_tokens: int
) -> Iterator[PromptState]:
    """Rows in the order of their turns: pictures together, long texts first; images are loaded in threads, up
    to AHEAD rows before."""
    longest: dict[Hashable, int] = {}
    for prompt in prompts:
        longest[prompt.image] = max(longest.get(prompt.image, 0), len(prompt.after))
    first = {image: number for number, image in reversed(list(enumerate(prompt.image for prompt in prompts)))}
    turns = sorted(
        range(len(prompts)),
        key=lambda number: (-longest[prompts[number].image], first[prompts[number].image]),
    )
    pool, queue, unfinished = ThreadPoolExecutor(THREADS), deque[PromptState](), True
    try:
        for number in turns:
            prompt, pixels = prompts[number], None
            if prompt.image is not None:
                shared = queue and queue[-1].prompt.image == prompt.image
                pixels = queue[-1].pixels if shared else pool.submit(load, number)
            queue.append(PromptState(number, prompt, pixels, max_new_tokens))
            if len(queue) > AHEAD:
                yield queue.popleft()
        unfinished = False
        yield from queue
    finally:  # the last rows may still be loading when there are no more to begin
        pool.shutdown(wait=False, cancel_futures=unfinished)
