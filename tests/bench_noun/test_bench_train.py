"""`bench train` on the tiny model and the CPU: the command, what it writes, and that the trainer's own steps
are what is timed."""

import argparse
import json

import pytest
import torch

from toolkit.__main__ import main
from toolkit.bench import synthetic
from toolkit.bench import train as bench
from toolkit.bench.parts import Stopwatch, timed_parts
from toolkit.scales import load
from toolkit.train.optimizer import AdamW
from toolkit.train.step import Execution, Stepper

CPU = torch.device("cpu")
PARTS = {
    "CLIP",
    "ConvNeXt",
    "mining",
    "projector",
    "decoder forward",
    "loss",
    "backward",
    "optimizer",
    "rest",
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setattr(bench, "choose_device", lambda: CPU)
    monkeypatch.setattr(bench, "WARM_UP", 1)


@pytest.mark.parametrize("stage", ["pretrain", "lora", "full"])
def test_the_command(stage, tmp_path, capsys):
    assert (
        main(["bench", "train", "--stage", stage, "--steps", "2", "--json", str(tmp_path / "result.json")])
        == 0
    )
    result = bench.Result.model_validate(json.loads((tmp_path / "result.json").read_text()))
    text, labelled = synthetic.TEXT[stage]
    assert (result.stage, result.size, result.device) == (stage, "tiny", "cpu")
    assert (result.length, result.labelled, result.samples, result.rows) == (
        16 + text,
        labelled,
        load("tiny").pretrain.global_batch,
        8,
    )
    assert len(result.seconds) == 2 and len(result.losses) == 3
    assert result.samples_per_second == pytest.approx(8 / (sum(result.seconds) / 2))
    assert result.tokens_per_second == pytest.approx(result.samples_per_second * result.length)
    assert set(result.shares) == PARTS and sum(result.shares.values()) == pytest.approx(1)
    work = sum(part["forward"] + part["backward"] for part in result.flops.values())
    assert result.utilisation == pytest.approx(result.samples_per_second * work / result.matrix_flops)
    assert result.peak_allocated_gib is None
    header, _, row, _, shares = capsys.readouterr().out.splitlines()
    assert (
        header.count("|") == row.count("|")
        and f"| {stage}, tiny | cpu |" in row
        and f"{result.samples_per_second:.1f}" in row
    )
    assert shares.startswith("of a step: ")


@pytest.mark.parametrize(("stage", "base"), [("lora", "nf4"), ("lora", "fp8"), ("pretrain", "fp8")])
def test_a_base_in_fewer_bits(stage, base, tmp_path, capsys):
    flags = ["--stage", stage, "--size", "tiny_llama", "--base", base, "--steps", "1"]
    assert main(["bench", "train", *flags, "--json", str(tmp_path / "result.json")]) == 0
    result = bench.Result.model_validate(json.loads((tmp_path / "result.json").read_text()))
    assert (result.size, result.base) == ("tiny_llama", base)
    assert f"| {stage}, tiny_llama, {base} base | cpu |" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "base"), [("pretrain", "nf4"), ("full", "nf4"), ("full", "fp8")])
def test_what_is_trained_keeps_its_bits(stage, base, capsys):
    assert main(["bench", "train", "--stage", stage, "--base", base]) == 1
    assert f"--base {base} goes with --stage" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["lora", "full"])
def test_the_kits_setting_goes_with_full_finetuning_on_a_gpu(capsys, stage):
    if stage == "full" and torch.cuda.is_available():
        pytest.skip("a GPU trains by it")
    assert main(["bench", "train", "--stage", stage, "--deepspeed", "zero2"]) == 1
    assert "--deepspeed goes with --stage full on a GPU" in capsys.readouterr().err


def test_one_sample_learns(tmp_path):
    """The steps train: the loss of the same samples falls."""
    assert (
        main(["bench", "train", "--stage", "full", "--steps", "6", "--json", str(tmp_path / "result.json")])
        == 0
    )
    losses = json.loads((tmp_path / "result.json").read_text())["losses"]
    assert losses[-1] < losses[1] - 0.1


def test_what_is_asked_for_is_done(tmp_path):
    given = ["--micro-batch", "2", "--checkpointed", "1"]
    assert (
        main(
            [
                "bench",
                "train",
                "--stage",
                "pretrain",
                "--steps",
                "1",
                *given,
                "--json",
                str(tmp_path / "result.json"),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["rows"], result["checkpointed"]) == (2, 1) and result["recomputed"] > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--budget-gib", "22"], "limits a GPU's memory and there is none"),
        (["--checkpointed", "2"], "--checkpointed goes with --micro-batch"),
    ],
)
def test_flags_that_mean_nothing_here(flags, sentence, capsys):
    assert main(["bench", "train", "--stage", "lora", *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_timing_by_parts_changes_nothing():
    """The same gradients with and without, and the model is as before."""
    model = synthetic.model("tiny", torch.float32, CPU)
    optimizer = AdamW(bench.trained(model, "pretrain"), 0.0, 1.0, CPU)
    stepper = Stepper(model.train(), optimizer, Execution(10**6), CPU)
    samples = synthetic.samples("pretrain", 2, model.mgm, seed=0)

    def gradients() -> list[torch.Tensor]:
        stepper.run(samples, 1, 2)
        found = [p.grad.clone() for p in optimizer.parameters.values() if p.grad is not None]
        optimizer.discard()
        return found

    before, attributes = gradients(), set(vars(model))
    watch = Stopwatch(CPU)
    with timed_parts(watch, model, optimizer):
        during = watch.wrapped("rest", gradients)()
    assert all(map(torch.equal, before, during))
    assert set(vars(model)) == attributes
    assert set(watch.shares()) == PARTS - {"optimizer"}


def test_parts_are_counted_without_the_parts_inside(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("toolkit.bench.parts.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU)
    inner = watch.wrapped("inner", lambda: None)
    outer = watch.wrapped("outer", lambda: (inner(), inner()))
    watch.wrapped("rest", lambda: (outer(), inner()))()
    # marks 0 to 9: rest 0-1, outer 1-2, inner 2-3, outer 3-4, inner 4-5, outer 5-6, rest 6-7, inner 7-8, rest
    # 8-9
    assert watch.shares() == {"rest": 3 / 9, "outer": 3 / 9, "inner": 3 / 9}


def test_activations_keep_their_size():
    """Random weights of any depth give a loss near that of a uniform guess and finite gradients."""
    model = synthetic.model("tiny", torch.float32, CPU)
    optimizer = AdamW(bench.trained(model, "full"), 0.0, 1.0, CPU)
    loss = Stepper(model.train(), optimizer, Execution(10**6), CPU).run(
        synthetic.samples("full", 2, model.mgm, seed=0), 1, 2
    )
    assert 4 < loss.item() < 10  # ln 384 is 5.95
    assert all(p.grad.isfinite().all() for p in optimizer.parameters.values() if p.grad is not None)


def test_tiny_is_the_embedded_world():
    from toolkit.mgm.checkpoint import build

    zoo = bench.Path("toolkit/world/zoo")
    built = build(zoo / "gemma", zoo / "clip", zoo / "convnext", image_size_aux=128)
    made = synthetic.model("tiny", torch.float32, CPU)
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in made.named_parameters()
    }


def test_2b_has_the_official_shapes(request):
    golden = json.loads(
        (request.config.rootpath / "tests/golden/mgm/mgm2b_state_dict_shapes.json").read_text()
    )["shapes"]
    from toolkit.mgm.checkpoint import empty

    model = empty(synthetic.CONFIGS["2B"])
    assert {name: list(p.shape) for name, p in model.named_parameters()} | {
        "lm_head.weight": [256000, 2048]
    } == golden


@pytest.mark.skipif(not torch.cuda.is_available(), reason="limits a GPU's memory")
def test_a_budget_is_kept(monkeypatch):
    monkeypatch.undo()
    flags = argparse.Namespace(
        stage="lora", size="tiny", budget_gib=4.0, micro_batch=None, checkpointed=None, steps=1
    )
    result = bench.measure(flags, torch.device("cuda"))
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.peak_allocated_gib <= result.peak_reserved_gib <= 4.0
