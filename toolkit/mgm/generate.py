"""Greedy continuations of many prompts at once, each equal to what its prompt gets alone.

Prompts that show one picture share its way through the towers and the decoder: everything up to the picture's
last token is the same. The texts after it follow in one padded pass, then all prompts decode together, each
in a slot of the key and value memory; a slot whose prompt has ended takes the next one, so that a long answer
holds nobody up.

Kernels round differently with the number of rows, so the two best tokens of a near-tie may change places.
Where they come closer than rounding can explain (ROUNDING), the prompt is run again in a memory of its own,
while the others go on.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.utils.rnn import pad_sequence

from toolkit.mgm.graphs import Graph
from toolkit.mgm.layout import IMAGE_TOKEN_INDEX, to_device
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import tensors
from toolkit.mgm.room import CHUNK, COLUMNS, Need
from toolkit.mgm.slots import Chosen, Grown, Placed, Row, Slots
from toolkit.processes import cores

try:
    from toolkit.mgm.fused import fuse
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    fuse = None  # type: ignore[assignment]

THREADS = min(8, cores())  # prepare images; decoding and resizing leave Python's lock
SWITCH = 0.0005  # seconds that they keep it while the thread that runs the model waits; default 0.005
AHEAD = 64  # prompts whose images are prepared before their turn
# Largest change of (best - second logit) / (standard deviation of all logits) that is put down to rounding.
ROUNDING = {torch.float16: 0.05, torch.float32: 1e-4}

# on a GPU; cuDNN's, which torch prefers, would be planned anew for each length of a text
ATTENTIONS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
TIES = 256  # passes that look for near-ties of one prompt: an answer of 128 tokens has few


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the place of the last image, the others' places among them as
    IMAGE_TOKEN_INDEX; and the name of what is shown, None without an image; equal names are the same
    pictures."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    image: Hashable

    @classmethod
    def of(cls, ids: list[int], image: Hashable) -> "Prompt":
        """The prompt of ids with an IMAGE_TOKEN_INDEX for each image, or none where `image` is None."""
        if image is None:
            return cls(tuple(ids[:1]), tuple(ids[1:]), None)
        place = len(ids) - 1 - ids[::-1].index(IMAGE_TOKEN_INDEX)
        return cls(tuple(ids[:place]), tuple(ids[place + 1 :]), image)

    @property
    def images(self) -> int:
        """How many it shows."""
        return 0 if self.image is None else 1 + self.before.count(IMAGE_TOKEN_INDEX)

    def begins(self, tokens: int) -> int:
        """Its length up to the last image's last token, of `tokens` an image."""
        return len(self.before) + self.images * tokens - max(self.images - 1, 0)

    def length(self, tokens: int) -> int:
        """Its length, of `tokens` an image."""
        return self.begins(tokens) + len(self.after)


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


class Greedy:
    """A model that continues `batch_size` prompts at once, each up to one of the ids `ends` (default: the
    model's).

    again: prompts that were run a second time, alone. waited, began, decoded: seconds spent waiting for
    images, on prompts, on new tokens.
    """

    def __init__(self, model: MGMForCausalLM, batch_size: int, ends: list[int] | None = None) -> None:
        self.model, self.batch_size, self.ends = model, batch_size, ends or model.ends
        self.graphs = model.device.type == "cuda"
        self.ahead = self.graphs  # whether a step is launched before the tokens of the one before are read
        self.fused = self.graphs and fuse is not None
        if self.graphs:  # convolutions as tensor cores read them
            model.model.vision_tower_aux.to(memory_format=torch.channels_last)
            if self.fused:
                fuse(model)
            sys.setswitchinterval(SWITCH)
        self.usual: tuple[int, ...] | None = None  # what stands before the image of the first prompt
        self.again, self.waited, self.began, self.decoded = 0, 0.0, 0.0, 0.0
        self.columns = self.most = 0  # of `at_once`
        self.forget()

    @torch.inference_mode()
    def run(
        self, prompts: list[Prompt], load: Callable[[int], np.ndarray], max_new_tokens: int
    ) -> Iterator[tuple[int, list[int]]]:
        """(number of the prompt, new ids without the end of sequence) as prompts end.

        load: number of a prompt to its pixels, uint8 [S, S, 3], or [images, S, S, 3] where it shows several;
        called in threads, once for neighbours with one picture.
        """
        columns = max((self.length(prompt) for prompt in prompts), default=0) + max_new_tokens
        rows = prepared(prompts, lambda number: self.sent(load(number)), max_new_tokens)
        size = min(CHUNK, self.at_once(columns))
        for changed in self.follow(lambda free: list(islice(rows, size)) if free >= size else [], columns):
            yield from ((row.number, row.new) for row in changed if row.ended)

    def sent(self, pixels: np.ndarray) -> Tensor:
        """Pixels (uint8) on the model's device. The copy to a GPU waits its turn there: no thread waits for
        it."""
        there, device = torch.from_numpy(pixels), self.model.device
        return there if device.type == "cpu" else there.pin_memory().to(device, non_blocking=True)

    @torch.inference_mode()
    def follow(self, take: Callable[[int], list[Row]], columns: int) -> Iterator[list[Row]]:
        """After each pass through the decoder, the prompts that got a token or ended.

        take: gives the prompts to begin, asked before each pass with the number of free slots; where it gives
        none and nothing is under way, the run ends. columns: tokens, prompt and answer, of the longest.
        """
        many: Slots[Row] = self.slots(self.at_once(columns))
        doubtful = deque[Row]()
        alone = many if many.rows == 1 else None
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
                alone = alone or self.slots(1)
                changed += self._pass(alone, [] if alone.live else [doubtful.popleft()])[0]
            yield [row for row in changed if row.ended or len(row.new) > row.known]

    def forget(self) -> None:
        """Give back the memory of keys and values, and what graphs take."""
        self.memory: dict[int, Slots[Any]] = {}
        if self.graphs:  # which run one after the other in the same memory, until the last of them has gone
            self.pool = torch.cuda.graph_pool_handle()

    def at_once(self, columns: int) -> int:
        """Prompts of `columns` tokens that are answered at once: `batch_size`, or as many as a GPU has memory
        for; their answers are the same."""
        if columns > self.columns:
            self.forget()
            self.columns, self.most = -(-columns // COLUMNS) * COLUMNS, self.batch_size
            room = self.room()
            if room is not None:
                need = Need(columns, self.token_bytes, self.model.tokens_per_image)
                self.most = need.fitting(self.batch_size, room)
            if self.most < self.batch_size:
                wanted = f"{self.most} of {self.batch_size}"
                print(f"the GPU's memory holds {wanted} questions at once", file=sys.stderr, flush=True)
        return self.most

    def room(self) -> int | None:
        """Bytes of the GPU that are free; None on the CPU."""
        if self.model.device.type == "cpu":
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.model.device)[0]

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        config, weight = self.model.config, self.model.lm_head.weight
        heads = config.num_key_value_heads * config.head_dim
        return 2 * config.num_hidden_layers * heads * weight.element_size()

    def slots(self, rows: int) -> Slots[Any]:
        """Memory for so many sequences of the length that `at_once` was asked for, the same in every run."""
        if rows not in self.memory:
            self.memory[rows] = Slots(self, rows, self.columns)
        self.memory[rows].clear()
        return self.memory[rows]

    def _pass(self, slots: Slots[Row], new: list[Row]) -> tuple[list[Row], list[Row]]:
        """Begin `new`, or else give each live row its next token; the first tokens come a pass later, so that
        a GPU begins the next prompts meanwhile. The rows that changed, and those that left their slots
        because rounding may have decided; a row that had the slots for itself is certain."""
        changed, unsure = [], []
        for slot in [slot for slot, row in slots.live.items() if row.cancelled]:
            changed.append(slots.live.pop(slot))
            changed[-1].ended = "cancelled"
        start = time.perf_counter()
        if new or slots.begun:
            chosen, slots.stepped = [*slots.begun, *filter(None, [slots.stepped])], None
            slots.begun = self.begin(slots, new) if new else []
            tokens = {slot: pick for part in chosen for slot, pick in part.picks(slots.live).items()}
            self.began += time.perf_counter() - start
        elif slots.live:
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

    def begin(self, slots: Slots[Row], rows: list[Row]) -> list[Chosen[Row]]:
        """Pass prompts through towers and decoder into free slots."""
        start = time.perf_counter()
        for row in rows:
            if row.pixels:
                row.pixels.result()
        waited = time.perf_counter() - start
        self.waited += waited
        self.began -= waited  # which `_pass` adds
        free = [slot for slot in range(slots.rows) if slot not in slots.live]
        placed = list(zip(free, rows, strict=False))
        slots.live |= placed
        groups = groupby(placed, key=lambda pair: (pair[1].prompt.before, pair[1].pixels is None))
        return [self._prefill(slots, dict(group)) for _, group in groups]

    def _prefill(self, slots: Slots[Row], placed: dict[int, Row]) -> Chosen[Row]:
        """Begin rows that begin alike, all with an image or all without, each in its slot.

        Sets the rows' lengths.
        """
        device, rows = self.model.device, list(placed.values())
        begin = rows[0].prompt
        shared = begin.begins(self.model.tokens_per_image)
        shown: dict[Future | None, int] = {}  # each picture once, in the slot of its first row
        for slot, row in placed.items():
            row.length = self.length(row.prompt)
            shown.setdefault(row.pixels, slot)
        texts = [torch.tensor(row.prompt.after[: row.length - shared]) for row in rows]
        # sent before the GPU has work: a later copy would wait for all of it
        owners = to_device(torch.tensor([shown[row.pixels] for row in rows]), device)
        places = to_device(torch.tensor(list(placed)), device)
        ends = to_device(torch.tensor([len(text) - 1 for text in texts]), device)
        ids = to_device(pad_sequence(texts, batch_first=True, padding_value=self.model.pad_id), device)
        self._begin(slots, begin.before, shown)
        grown, longest = slots.grown(owners, shared), ids.shape[1]
        mask: Tensor | CausalBias = causal_lower_right(longest, shared + longest)
        if not self.fused:
            seen = torch.ones(longest, shared + longest, dtype=torch.bool, device=device)
            mask = seen.tril(shared)[None, None]
        positions = torch.arange(shared, shared + longest, device=device)[None]
        hidden = self.pass_through(self.model.model.embed_tokens(ids), positions, mask, grown)
        for layer, (keys, values) in grown.layers.items():
            slots.put(places, layer, keys, values)
        last = hidden[torch.arange(len(rows), device=device), ends]
        return Chosen(placed, list(range(len(rows))), *self.choices(last))

    def _begin(self, slots: Slots, before: tuple[int, ...], shown: dict[Future | None, int]) -> None:
        """Pass what stands in front of the prompts' texts through the decoder, into the slots of `shown`."""
        ids = to_device(torch.tensor([before]), self.model.device)
        places = to_device(torch.tensor(list(shown.values())), self.model.device)
        pictures = [picture.result() for picture in shown if picture is not None]
        if not pictures:
            self._read(slots, places, self.model.model.embed_tokens(ids))
            return
        pixels = torch.stack(pictures)
        if IMAGE_TOKEN_INDEX in before:  # each prompt alone: it has as many images as a chunk of others may
            for place, picture in zip(places.split(1), pixels.split(1), strict=True):
                self._show(slots, ids, place, picture)
            return
        self.usual = self.usual or before
        # an HD picture keeps a GPU busy for longer than its kernels take to launch
        if not self.graphs or self.model.mgm.image_grid > 1 or before != self.usual:
            self._show(slots, ids, places, pixels)
            return
        # in powers of two, so that there are few graphs
        sizes = [size for power in range(len(pictures).bit_length()) if (size := 1 << power) & len(pictures)]
        for size, *part in zip(sizes, places.split(sizes), pixels.split(sizes), strict=True):
            if size not in slots.beginnings:
                slots.beginnings[size] = None
                self._show(slots, ids, *part)
                continue
            own = (ids, *(tensor.clone() for tensor in part))
            graph = slots.beginnings[size] or Graph(self.pool, partial(self._show, slots), *own)
            slots.beginnings[size] = graph
            graph(ids, *part)

    def _show(self, slots: Slots, ids: Tensor, places: Tensor, pixels: Tensor) -> None:
        """Pass ids [1, n] and each picture behind them through the decoder, into the slots `places`."""
        self._read(slots, places, self._beginnings(ids, pixels))

    def _read(self, slots: Slots, places: Tensor, embeds: Tensor) -> None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        self.pass_through(embeds, positions, None, Placed(slots, places))

    def _beginnings(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Ids [1, n] and, behind them, each of the pictures (uint8 [pictures, S, S, 3]): [pictures, L, d].

        Where ids have places of images, pixels are [pictures, images, S, S, 3], and a picture's last image
        stands behind them.
        """
        if pixels.dim() == 4:
            pixels, texts = pixels[:, None], [ids]
        else:
            first, *others = ids.tensor_split((ids[0] == IMAGE_TOKEN_INDEX).nonzero()[:, 0].cpu(), dim=1)
            texts = [first, *(text[:, 1:] for text in others)]
        dtype = self.model.lm_head.weight.dtype
        low, high = tensors(pixels.flatten(0, 1), self.model.mgm)
        tokens = self.model.image_tokens(low.to(dtype), high.to(dtype))
        tokens = (tokens * self.model.mgm.language.embedding_scale).to(dtype)
        shown = tokens.unflatten(0, pixels.shape[:2]).unbind(1)
        embedded = [self.model.model.embed_tokens(text).expand(len(pixels), -1, -1) for text in texts]
        return torch.cat([part for pair in zip(embedded, shown, strict=True) for part in pair], dim=1)

    @torch.inference_mode()
    def near_ties(
        self, prompt: Prompt, picture: np.ndarray | None, max_new_tokens: int, tolerance: float
    ) -> Iterator[list[int]]:
        """Every continuation that rounding can lead to, TIES passes at most: at each token one whose logit
        comes within `tolerance` standard deviations of the best."""
        begin = to_device(torch.tensor([prompt.before]), self.model.device)
        begin = (
            self.model.model.embed_tokens(begin)
            if picture is None
            else self._beginnings(begin, self.sent(picture)[None])
        )
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
        """Tokens of a prompt, its images' included, cut at the model's length."""
        return min(prompt.length(self.model.tokens_per_image), self.model.mgm.model_max_length)

    def pass_through(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | CausalBias | None,
        memory: Grown | Placed | Slots,
    ) -> Tensor:
        """[n, L, d] at positions [n or 1, L] through all decoder layers, not yet normalised; mask [n or 1, 1,
        L, seen], in a fused decoder also a `CausalBias`; None: causal."""
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
