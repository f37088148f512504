"""Which passes fit into a GPU's memory: measured in small steps, predicted, and said in words before training
starts.

Activations grow with the tokens of a pass. Two passes without gradient checkpointing give the bytes of a
token, two with it in every layer give the other end, and what lies between is linear in the number of layers
checkpointed. A pass as large as these say is then run: what it took decides.
"""

import sys
from dataclasses import dataclass, replace

import torch

from toolkit.errors import UserError
from toolkit.mgm.layout import expand
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import views
from toolkit.train import distributed, memory
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.memory import GIB, RESERVE
from toolkit.train.step import Execution, Stepper

SMALL = 300  # tokens that a pass costs beside its own: launches, matrices too small for the chip
MOST = 16_384  # tokens of a pass beyond which nothing is gained
IMAGES = 12  # that the towers see at a time: fewer do not fill a GPU


@dataclass(frozen=True)
class Line:
    """Peak bytes of a pass above what lies there all the time: fixed + token * tokens."""

    fixed: float
    token: float

    @classmethod
    def through(cls, tokens: tuple[int, int], peaks: tuple[int, int]) -> "Line":
        """The line through two measured passes."""
        slope = max((peaks[1] - peaks[0]) / (tokens[1] - tokens[0]), 1.0)
        return cls(max(peaks[0] - slope * tokens[0], 0.0), slope)

    def towards(self, other: "Line", share: float) -> "Line":
        """The line between this one and `other`."""
        return Line(
            self.fixed + share * (other.fixed - self.fixed), self.token + share * (other.token - self.token)
        )


def choose(
    plain: Line | None, checkpointed: Line, room: float, layers: int, longest: int, frozen: bool
) -> Execution | None:
    """The fastest division that fits into `room` bytes; None when not even one row of `longest` tokens does.

    plain: without checkpointing, None where its small steps did not fit. A token costs a forward and a
    backward pass, and another forward pass of each checkpointed layer; frozen weights halve the backward
    pass.
    """
    best, best_cost = None, float("inf")
    for count in range(layers + 1):
        if plain is None and count < layers:
            continue
        line = checkpointed if plain is None else plain.towards(checkpointed, count / layers)
        tokens = min(int((room - line.fixed) / line.token), MOST)
        if tokens < longest:
            continue
        cost = (1 + count / layers / (2 if frozen else 3)) * (1 + SMALL / tokens)
        if cost < best_cost:
            best, best_cost = Execution(tokens, count), cost
    return best


def longest_samples(dataset: Conversations, count: int) -> list[Sample]:
    """The samples with the most words, images first: what a pass must have room for."""
    rows = dataset.rows
    words = [
        ("image" in row, sum(len(turn["value"].split()) for turn in row["conversations"])) for row in rows
    ]
    order = sorted(range(len(rows)), key=lambda index: words[index], reverse=True)
    return [dataset[index] for index in order[:count]]


def length(model: MGMForCausalLM, sample: Sample) -> int:
    """Tokens of a sample with its image's."""
    ids = torch.tensor(sample.input_ids)
    return len(expand(ids, None, model.tokens_per_image, model.mgm.model_max_length).ids)


def measure(stepper: Stepper, samples: list[Sample]) -> int | None:
    """Peak bytes above the present ones of one pass over `samples`; None when it does not fit."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        stepper.run(samples, 1, len(samples))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        stepper.optimizer.discard()


def confirm(
    stepper: Stepper, sample: Sample, execution: Execution, room: float, longest: int
) -> tuple[Execution, int] | None:
    """(`execution` with passes as large as one that was run within `room` bytes, its peak); None when one row
    does not fit.

    Small passes tell little of large ones. Where all weights are trained, the largest matrix's gradient sets
    their peak and hides what a token takes; elsewhere they take more a token.
    """

    def peak_of(rows: int) -> int | None:
        peak = measure(stepper, [sample] * rows)
        return peak if peak is not None and peak <= room else None

    while (rows := execution.pass_tokens // longest) > 0:
        stepper.execution = execution
        if (peak := peak_of(rows)) is not None:
            break
        torch.cuda.empty_cache()
        execution = replace(execution, pass_tokens=min(3 * execution.pass_tokens // 4, (rows - 1) * longest))
    else:
        return None
    # a part of the peak is fixed, so that as many tokens in proportion take less
    larger = replace(execution, pass_tokens=min(int(rows * longest * room / peak), MOST))
    if larger.pass_tokens // longest == rows:
        return larger, peak
    stepper.execution = larger
    if (its_peak := peak_of(larger.pass_tokens // longest)) is not None:
        return larger, its_peak
    torch.cuda.empty_cache()
    return replace(execution, pass_tokens=rows * longest), peak


def with_towers(
    stepper: Stepper, sample: Sample, confirmed: tuple[Execution, int], room: float, longest: int
) -> tuple[Execution, int]:
    """What `confirm` gave, with towers that see the images of several passes at a time where a pass has few
    and what they see fits into `room` bytes beside it."""
    execution = confirmed[0]
    rows, most = execution.pass_tokens // longest, IMAGES // views(stepper.model.mgm)
    if most < 2 * rows:
        return confirmed
    stepper.execution = wider = replace(execution, images=most)
    peak = measure(stepper, [sample] * (most // rows * rows))
    return (wider, peak) if peak is not None and peak <= room else confirmed


def budget(given: int | None) -> int:
    """Bytes of this GPU that may be allocated: as given, or what is free, less RESERVE."""
    return given or int((torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) * (1 - RESERVE))


def setting(
    model: MGMForCausalLM, parameters: dict[str, torch.nn.Parameter], processes: int, budget: int
) -> str:
    """Where the full finetuning keeps its optimizer: the first of memory.SETTINGS that leaves room in the
    budget; all processes follow the first one's choice."""
    total, trained = (sum(p.numel() for p in some) for some in (model.parameters(), parameters.values()))
    return distributed.agree(memory.fastest(total, trained, processes, budget))


def plan(stepper: Stepper, samples: list[Sample], budget: int) -> Execution:
    """Choose the passes for a device, given the longest samples of the data (two or more); prints the
    choice and why.

    budget: bytes that may be allocated. UserError when a single row does not fit. All processes follow the
    first one's choice.
    """
    model, layers = stepper.model, len(stepper.model.model.layers) - 1  # the last one is never checkpointed
    present = torch.cuda.memory_allocated()
    moments = stepper.optimizer.bytes_to_come()
    room = budget - present - moments
    longest = max(length(model, sample) for sample in samples)
    two, three = samples[:2], samples[:2] + samples[:1]  # not one row, which would be compiled apart

    def line(checkpointed: int) -> Line | None:
        stepper.execution = replace(stepper.execution, pass_tokens=sys.maxsize, checkpointed=checkpointed)
        small, large = measure(stepper, two), measure(stepper, three)
        torch.cuda.empty_cache()
        if small is None or large is None:
            return None
        return Line.through((longest * len(two), longest * len(three)), (small, large))

    # where processes go through passes together, one that ran out of memory would leave the others waiting
    lean, plain = line(layers), None if stepper.optimizer.lockstep else line(0)
    trained = any(
        p.requires_grad for name, p in model.named_parameters() if name.endswith("mlp.down_proj.weight")
    )
    execution = lean and choose(plain, lean, room, layers, longest, frozen=not trained)
    confirmed = None
    if execution and not stepper.optimizer.lockstep:
        sample = max(samples, key=lambda sample: length(model, sample))
        if confirmed := confirm(stepper, sample, execution, room, longest):
            confirmed = with_towers(stepper, sample, confirmed, room, longest)
        execution = confirmed and confirmed[0]
    if not lean or not execution:
        raise UserError(
            f"{budget / GIB:.1f} GiB do not hold one row of {longest} tokens beside "
            f"{(present + moments) / GIB:.1f} GiB of weights"
        )
    used = lean if plain is None else plain.towards(lean, execution.checkpointed / layers)
    activations = confirmed[1] if confirmed else used.fixed + used.token * execution.pass_tokens
    predicted = present + moments + activations
    if distributed.rank() == 0:
        print(
            f"memory: budget {budget / GIB:.1f} GiB; weights {present / GIB:.1f}, gradients and moments "
            f"{moments / GIB:.1f}, activations of a row of {longest} tokens "
            f"{(plain or lean).token * longest / GIB:.2f} ({lean.token * longest / GIB:.2f} with every "
            f"layer checkpointed); chosen: passes of {execution.pass_tokens} tokens, "
            f"{execution.checkpointed} of {layers} layers checkpointed, {predicted / GIB:.1f} GiB "
            "expected at the peak",
            flush=True,
        )
    return distributed.agree(execution)
