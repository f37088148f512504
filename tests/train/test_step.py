"""Any division of a step into passes gives the official gradient; the planner's arithmetic; running out of
memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolkit.bench import synthetic
from toolkit.errors import UserError
from toolkit.mgm import loss
from toolkit.mgm.layout import IGNORE_INDEX, IMAGE_TOKEN_INDEX, TokenRow, expand, stack
from toolkit.mgm.loss import ROWS, cross_entropy
from toolkit.mgm.model import TRAINED_NAMES
from toolkit.train import planner
from toolkit.train.dataset import Sample
from toolkit.train.optimizer import AdamW
from toolkit.train.planner import GIB, Line, choose
from toolkit.train.stages import execution_plan, train_only
from toolkit.train.step import Execution, Stepper, expanded, in_step, passes, seen_together, shares
from toolkit.train.strategies.base import Item
from toolkit.train.trainer import Trainer

CPU = torch.device("cpu")


def row(length: int, labelled: int) -> TokenRow:
    labels = torch.full((length,), IGNORE_INDEX)
    labels[length - labelled :] = 1
    return TokenRow(torch.ones(length, dtype=torch.long), labels, 0)


def test_a_pass_takes_rows_of_like_length_evenly():
    rows = [row(length, 1) for length in (10, 30, 20, 30, 10, 10)]
    found = passes(rows, 60)
    assert [[len(rows[index].ids) for index in part] for part in found] == [[30, 30], [20, 10], [10, 10]]
    assert sorted(index for part in found for index in part) == list(range(6))
    assert [len(part) for part in passes([row(10, 1)] * 10, 80)] == [5, 5]  # not 8 and 2
    assert passes(rows[:2], 1) == [[1], [0]]  # a row longer than a pass makes one of its own


def test_passes_are_cut_until_all_processes_have_as_many(monkeypatch):
    monkeypatch.setattr("toolkit.train.step.distributed.largest", lambda count: 4)
    found = in_step([[0, 1, 2, 3], [4, 5]])
    assert len(found) == 4 and sorted(index for part in found for index in part) == list(range(6))


def test_towers_see_the_images_of_several_passes_at_a_time():
    def part(images: int) -> list[Item]:
        sample = Sample([], [], np.zeros(1))
        return [Item(sample, TokenRow(torch.zeros(1), None, 1), 1.0)] * images

    def runs(*images: int, most: int) -> list[list[int]]:
        return [
            [len(found) for found in run] for run in seen_together([part(count) for count in images], most)
        ]

    assert runs(3, 3, 3, 3, 3, most=12) == [[3, 3, 3, 3], [3]]
    assert runs(5, 5, 5, 2, 0, most=12) == [[5, 5], [5, 2, 0]]
    assert runs(20, 1, most=12) == [[20], [1]]  # a pass of more has them at a time anyway


def test_a_pass_of_text_alone_has_no_image_tokens(tiny):
    samples = synthetic.samples("pretrain", 3, tiny[0].mgm, 0)
    samples[2] = Sample(samples[2].input_ids[2:20], samples[2].labels[2:20], None)
    items = [Item(sample, expanded(tiny[0], sample), 1.0) for sample in samples]
    stepper = Stepper(*tiny, Execution(1, images=12), CPU)
    found = [(items.index(part[0]), features) for part, features in stepper._passes(items, 1)]
    assert {place: features and len(features.low) for place, features in found} == {0: 1, 1: 1, 2: None}


def test_tokens_weigh_as_in_a_mean_of_means():
    rows = [row(10, 2), row(10, 6), row(10, 4)]
    assert shares(rows, groups=2, group_size=2) == pytest.approx([1 / 16, 1 / 16, 1 / 8])
    # nothing to weigh, and nothing divided by zero
    assert shares([row(5, 0)], groups=1, group_size=1) == [1.0]


@pytest.fixture(scope="module")
def tiny():
    model = synthetic.model("tiny", torch.float32, CPU)
    parameters = train_only(model, lambda name: any(part in name for part in TRAINED_NAMES))
    return model.train(), AdamW(parameters, 0.0, 1.0, CPU)


def gradients(tiny, samples, execution: Execution) -> tuple[float, dict[str, torch.Tensor]]:
    model, optimizer = tiny
    loss = Stepper(model, optimizer, execution, CPU).run(samples, 3, 2).item()
    found = {name: p.grad.clone() for name, p in optimizer.parameters.items() if p.grad is not None}
    optimizer.discard()
    return loss, found


@pytest.mark.numerics
@pytest.mark.parametrize(
    "execution",
    [
        *(Execution(160), Execution(1), Execution(10**6, 2), Execution(250, 1)),
        *(Execution(160, images=3), Execution(160, images=100), Execution(1, images=2)),
    ],
)
def test_the_gradient_does_not_depend_on_the_passes(tiny, execution):
    samples = synthetic.samples("pretrain", 6, tiny[0].mgm, 0)
    # a short row of text alone
    samples[3] = type(samples[3])(samples[3].input_ids[2:20], samples[3].labels[2:20], None)
    loss, expected = gradients(tiny, samples, Execution(10**6))
    other, found = gradients(tiny, samples, execution)
    assert other == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-6 * expected[name].abs().max().item()
        )


def test_a_step_without_images_still_decays_the_moments(tiny):
    model, optimizer = tiny
    samples = synthetic.samples("pretrain", 2, model.mgm, 0)
    text = [type(s)(s.input_ids[2:], s.labels[2:], None) for s in samples]
    stepper = Stepper(model, optimizer, Execution(1000), CPU)
    parameter = optimizer.parameters["model.mm_projector.0.weight"]
    before = parameter.detach().clone()
    stepper.run(samples, 1, 2)
    optimizer.step(1e-3)
    moment = optimizer.adam.state[parameter]["exp_avg"].clone()
    stepper.run(text, 1, 2)
    optimizer.step(1e-3)
    torch.testing.assert_close(optimizer.adam.state[parameter]["exp_avg"], 0.9 * moment)
    with torch.no_grad():
        parameter.copy_(before)
    optimizer.adam.state.clear()


def test_image_tokens_stand_where_the_placeholders_were():
    ids = torch.tensor([2, IMAGE_TOKEN_INDEX, 5, IMAGE_TOKEN_INDEX, 6])
    first = expand(ids, ids.clone(), tokens=3, limit=8)
    second = expand(torch.tensor([2, IMAGE_TOKEN_INDEX]), torch.tensor([2, 7]), tokens=3, limit=8)
    # 6 was cut off
    assert first.images == 2 and first.ids.tolist() == [
        2,
        *[IMAGE_TOKEN_INDEX] * 3,
        5,
        *[IMAGE_TOKEN_INDEX] * 3,
    ]
    assert first.labels.tolist() == [2, *[IGNORE_INDEX] * 3, 5, *[IGNORE_INDEX] * 3]
    right, left = stack([first, second], 3, 0, "right"), stack([first, second], 3, 0, "left")
    assert right.places.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11] and left.places.tolist() == [
        1,
        2,
        3,
        5,
        6,
        7,
        13,
        14,
        15,
    ]
    assert right.sources.tolist() == left.sources.tolist() == list(range(9))
    assert right.mask.sum(1).tolist() == [8, 4] and right.ids[0].tolist() == [2, 0, 0, 0, 5, 0, 0, 0]


@pytest.mark.numerics
@pytest.mark.parametrize("multiple", [1, loss.FILLED])
def test_cross_entropy_in_parts_is_cross_entropy(monkeypatch, multiple):
    assert loss.ROWS % loss.FILLED == 0
    sizes = []

    def probabilities(logits, *others):
        sizes.append(len(logits))
        return loss.probabilities(logits, *others)

    monkeypatch.setattr(loss, "_kernel", lambda cuda: (probabilities, multiple))
    generator = torch.Generator().manual_seed(0)
    count = 2 * ROWS + 3
    hidden = torch.randn(count, 8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 11, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    expected = (
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none") * weights
    ).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    value = cross_entropy(hidden, weight, targets, weights)
    found = torch.autograd.grad(3 * value, (hidden, weight))
    assert sizes == [ROWS, ROWS, multiple if multiple > 1 else 3]
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, 3 * theirs, rtol=1e-4, atol=1e-5)


def test_the_planner_checkpoints_only_where_rows_do_not_fit():
    plain, lean = Line(0.5 * GIB, 1.0e6), Line(0.5 * GIB, 0.1e6)
    assert choose(plain, lean, 20 * GIB, layers=17, longest=640, frozen=True) == Execution(16_384, 0)
    tight = choose(plain, lean, 1.0 * GIB, layers=17, longest=640, frozen=True)
    assert 0 < tight.checkpointed <= 17 and tight.pass_tokens >= 640
    line = plain.towards(lean, tight.checkpointed / 17)
    assert line.fixed + line.token * tight.pass_tokens <= 1.0 * GIB
    assert choose(None, lean, 2 * GIB, layers=17, longest=640, frozen=True).checkpointed == 17
    assert choose(plain, lean, 0.5 * GIB, layers=17, longest=640, frozen=True) is None


@pytest.mark.parametrize("fits, expected", [(20, 18), (5, 5), (1, 1), (0, None)])
def test_passes_are_run_before_training_where_the_largest_gradient_hides_their_growth(
    monkeypatch, fits, expected
):
    tried = []

    def measure(stepper, samples):
        tried.append(len(samples))
        return None if len(samples) > fits else 100 * len(samples)

    monkeypatch.setattr(planner, "measure", measure)
    stepper = SimpleNamespace(execution=None)
    result = planner.confirm(stepper, "sample", Execution(16_384, 3), room=100.0 * fits, longest=900)
    assert tried == sorted(tried, reverse=True)
    if expected is None:
        assert result is None
    else:
        execution, peak = result
        assert execution.pass_tokens // 900 == expected and execution.checkpointed == 3
        assert peak == 100 * expected


@pytest.mark.parametrize("limit, tokens", [(20, 9_000), (9, 7_200)])
def test_passes_grow_where_small_ones_took_more_a_token(monkeypatch, limit, tokens):
    """8 rows of 900 take 700 of 875 bytes: 10 do not exceed them. Where 10 do, 8 stay."""
    tried = []

    def measure(stepper, samples):
        tried.append((len(samples), stepper.execution.pass_tokens))
        return 60 + 80 * len(samples) if len(samples) <= limit else None

    monkeypatch.setattr(planner, "measure", measure)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    stepper = SimpleNamespace(execution=None)
    result = planner.confirm(stepper, "sample", Execution(7_500, 2), room=875.0, longest=900)
    assert tried == [(8, 7_500), (10, 9_000)]
    assert result == (Execution(tokens, 2), 860 if tokens == 9_000 else 700)


@pytest.mark.parametrize(
    ("rows", "crops", "peak", "images", "measured"),
    [
        (3, 1, 900, 12, 12),
        (5, 1, 900, 12, 10),
        (7, 1, 900, 1, None),  # a pass has enough
        (3, 1, 1100, 1, 12),  # no room
        (3, 1, None, 1, 12),
        (1, 5, 900, 2, 2),
        (2, 5, 900, 1, None),
    ],
)
def test_towers_see_several_passes_where_that_fits(monkeypatch, rows, crops, peak, images, measured):
    tried = []
    monkeypatch.setattr(planner, "measure", lambda stepper, given: tried.append(len(given)) or peak)
    monkeypatch.setattr(planner, "views", lambda config: crops)
    stepper = SimpleNamespace(execution=None, model=SimpleNamespace(mgm=None))
    before = (Execution(rows * 100 + 50, 2), 700)
    chosen = planner.with_towers(stepper, "sample", before, 1000.0, 100)
    assert chosen == ((Execution(rows * 100 + 50, 2, images), peak) if images > 1 else before)
    assert tried == ([] if measured is None else [measured])


@pytest.mark.parametrize(("before", "expected"), [(None, Execution(700)), (Execution(350), Execution(350))])
def test_a_continued_run_makes_the_planners_passes_too(monkeypatch, before, expected):
    """What is compiled depends on the shapes that come first: without them a continued run would round
    otherwise than a whole one."""
    made = []
    monkeypatch.setattr(
        planner, "plan", lambda stepper, samples, budget: made.append((samples, budget)) or Execution(700)
    )
    monkeypatch.setattr(planner, "longest_samples", lambda dataset, count: ["longest"] * count)
    assert execution_plan(None, None, GIB, before) == expected
    assert made == [(["longest"] * 2, GIB)]


def test_a_line_goes_through_both_measurements():
    line = Line.through((100, 150), (1300, 1800))
    assert (line.fixed, line.token) == (300.0, 10.0)


def test_longest_samples_are_those_with_an_image_and_the_most_words():
    turns = [{"value": "a b c"}], [{"value": "a"}], [{"value": "a b"}]
    rows = [
        {"conversations": turns[0]},
        {"conversations": turns[1], "image": "x"},
        {"conversations": turns[2], "image": "y"},
    ]
    dataset = type("Rows", (list,), {"rows": rows})(range(3))
    assert planner.longest_samples(dataset, 2) == [2, 1]


def test_out_of_memory_halves_the_passes_and_repeats_the_step(tiny, capsys):
    model, optimizer = tiny
    samples = synthetic.samples("pretrain", 4, model.mgm, 0)
    stepper = Stepper(model, optimizer, Execution(320), CPU)
    expected = gradients(tiny, samples, Execution(320))[0]
    run, tried = stepper.run, []

    def scarce(*arguments):
        tried.append(stepper.execution.pass_tokens)
        loss = run(*arguments)
        if stepper.execution.pass_tokens > 100:  # gradients are there already
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return loss

    stepper.run = scarce
    trainer = SimpleNamespace(
        plan=SimpleNamespace(seed=1, accumulation=3, micro_batch=2, rate=lambda step: 0.0, rows=8, steps=1)
    )
    trainer.model, trainer.optimizer = model, optimizer
    trainer._smaller_passes = lambda *a: Trainer._smaller_passes(trainer, *a)
    trainer._count_unlabelled = lambda *a: None
    line = Trainer._step(trainer, 0, samples, stepper)
    assert tried == [320, 160, 80] and stepper.execution == Execution(80)
    assert line["loss"] == pytest.approx(expected, abs=1e-4)
    assert (
        "step 1 ran out of GPU memory: it is repeated, and goes on, with passes of 160 tokens"
        in capsys.readouterr().out
    )
    stepper.execution = Execution(3)
    with pytest.raises(UserError, match="does not fit into the GPU's memory one row at a time"):
        Trainer._smaller_passes(trainer, stepper, "CUDA out of memory", 0)
