"""Operations counted by formula against those that torch counts in the tiny model's own passes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from toolkit.bench import flops, synthetic
from toolkit.bench.train import trained
from toolkit.mgm.processor import tensors
from toolkit.train import planner
from toolkit.train.optimizer import AdamW
from toolkit.train.step import Execution, Stepper

CPU = torch.device("cpu")
CONFIG = synthetic.CONFIGS["tiny"]
COUNT = 2  # samples


def with_plain_attention():
    """The tiny model; torch counts what the fused attention computes again in its backward pass."""
    network = synthetic.model("tiny", torch.float32, CPU)
    network.config._attn_implementation = network.clip.config._attn_implementation = "eager"
    return network


@pytest.fixture
def model():
    return with_plain_attention()


def counted(function) -> int:
    # in-place sums of products are missing in torch's table
    missing = {torch.ops.aten.addmm_: lambda into, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=missing) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "stage"),
    [
        *((CONFIG, stage) for stage in ("pretrain", "lora", "full")),
        (CONFIG.with_(image_size_aux=256, image_grid=2, image_global=True), "lora"),
        (CONFIG.with_(image_size_aux=256, image_grid=2), "pretrain"),
    ],
)
def test_a_training_pass(config, stage, monkeypatch):
    monkeypatch.setitem(synthetic.CONFIGS, "tiny", config)
    model = with_plain_attention()
    parameters = trained(model, stage)
    optimizer = AdamW(parameters, 0.0, 1.0, CPU)
    samples = synthetic.samples(stage, COUNT, model.mgm, seed=0)
    stepper = Stepper(model.train(), optimizer, Execution(10**6), CPU)
    parts = flops.sample(config, stage, *synthetic.TEXT[stage])
    total = COUNT * sum(part.total for part in parts.values())
    assert counted(lambda: stepper.run(samples, 1, COUNT)) == pytest.approx(total, rel=1e-9)

    stepper.execution = Execution(10**6, checkpointed=2)
    more = COUNT * flops.recomputed(config, stage, synthetic.TEXT[stage][0], 2)
    assert counted(lambda: stepper.run(samples, 1, COUNT)) == pytest.approx(total + more, rel=1e-9)


def test_the_parts(model):
    """Each part's forward pass alone, and mining's backward pass."""
    trained(model, "pretrain")
    (sample,) = synthetic.samples("pretrain", 1, CONFIG, seed=0)
    low, high = tensors(torch.from_numpy(sample.pixels)[None], CONFIG)
    tokens, maps = model.clip_features(low), model.aux_maps(high)
    assert counted(lambda: model.clip_features(low)) == flops.clip(CONFIG).forward
    assert counted(lambda: model.aux_maps(high)) == flops.convnext(CONFIG).forward
    fused = model.fuse(tokens, maps)
    assert counted(lambda: model.fuse(tokens, maps)) == flops.mining(CONFIG).forward
    assert counted(lambda: fused.sum().backward()) == flops.mining(CONFIG).backward
    assert counted(lambda: model.model.mm_projector(tokens)) == flops.projector(CONFIG).forward


def test_sizes_of_the_real_model():
    """Decoder and logits of the 2B model from its well-known numbers of weights, 2 operations each a
    token."""
    config = synthetic.CONFIGS["2B"]
    layer = 2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 16384
    decoder = flops.decoder(config, "full", 639, 639, 16)
    assert decoder.forward == 2 * 639 * 18 * layer and decoder.backward == 2 * decoder.forward
    assert flops.logits(config, "full", 1).forward == 2 * 256000 * 2048
    assert flops.image_tokens(config) == 576


def test_peak_is_a_rate():
    assert 1e8 < flops.peak(CPU) < 1e14


def test_lengths_are_those_of_the_measurements():
    """639 and 875 tokens with the image's 576, of which 32 and 150 have a label."""
    image = flops.image_tokens(synthetic.CONFIGS["2B"])
    assert {stage: (image + text, labelled) for stage, (text, labelled) in synthetic.TEXT.items()} == {
        "pretrain": (639, 32),
        "lora": (875, 150),
        "full": (875, 150),
    }


@pytest.mark.parametrize("stage", ["pretrain", "lora"])
def test_samples(model, stage):
    one, two = synthetic.samples(stage, 2, CONFIG, seed=3)
    text, labelled = synthetic.TEXT[stage]
    assert planner.length(model, one) == flops.image_tokens(CONFIG) + text
    assert (
        sum(label >= 0 for label in one.labels) == labelled
        and one.labels[-labelled:] == one.input_ids[-labelled:]
    )
    assert (
        one.pixels.shape == (128, 128, 3)
        and (one.pixels != two.pixels).any()
        and one.input_ids != two.input_ids
    )
    assert synthetic.samples(stage, 1, CONFIG, seed=3)[0].input_ids == one.input_ids
