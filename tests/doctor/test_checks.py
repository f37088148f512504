"""Doctor's judgement of machines that are not here: their facts go in, states and remedies come out."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from machines import FULL, H100, LAPTOP, LORA, RTX4090, SERVER, TINY, machine, training

from toolkit import config
from toolkit.doctor import checks, work
from toolkit.doctor.facts import Facts
from toolkit.errors import UserError
from toolkit.train.memory import GIB, SIZES

ROOT = Path(__file__).parents[2]


def states(facts: Facts, asked: work.Work) -> dict[str, str]:
    return {check.name: check.state for check in checks.judge(facts, asked) if check.state != "ok"}


@pytest.mark.parametrize(
    ("facts", "asked"),
    [(SERVER, FULL), (SERVER, LORA), (machine(), FULL), (machine(memory=32), LORA), (LAPTOP, TINY)],
)
def test_machines_that_can_do_it(facts, asked):
    assert states(facts, asked) == {}
    assert checks.assert_able(facts, asked) == []


def test_without_a_gpu_a_full_size_configuration_fails_with_remedies():
    judged = {check.name: check for check in checks.judge(LAPTOP, FULL)}
    failed = [name for name, check in judged.items() if check.state == "failure"]
    assert failed == ["NVIDIA driver", "compute capability", "GPU memory", "host memory"]
    assert "580" in judged["NVIDIA driver"].remedy and "tiny.yaml" in judged["NVIDIA driver"].remedy
    assert "finetune.division: open needs 7." in judged["GPU memory"].remedy


def test_a_host_of_32_gb_is_told_to_take_lora():
    host = checks.host_memory(machine(memory=32), FULL)
    assert host.state == "failure" and "take LoRA (finetune.division: open)" in host.remedy
    assert checks.host_memory(machine(memory=32), LORA).state == "ok"
    # the large GPU keeps the optimizer; a checkpoint still goes through the host's memory
    assert checks.host_memory(machine(gpu=H100, memory=32), FULL).state == "warning"
    assert checks.host_memory(machine(gpu=H100, memory=64), FULL).state == "ok"


def test_swap_counts_and_what_others_hold_is_a_warning():
    assert checks.host_memory(machine(memory=32), FULL).state == "failure"
    assert checks.host_memory(machine(memory=32, swap=32 * GIB), FULL).state == "ok"
    # enough until a checkpoint is written
    assert checks.host_memory(machine(gpu=H100, memory=16, swap=8 * GIB), FULL).state == "warning"
    busy = replace(machine(memory=64), available=20 * GIB)
    assert checks.host_memory(busy, FULL).state == "warning"


@pytest.mark.parametrize(
    ("free", "asked", "state", "advice"),
    [
        (23.6, FULL, "ok", ""),
        (15.6, FULL, "failure", "finetune.division: open needs 7."),
        (7.4, FULL, "failure", "finetune.base: nf4 needs 6."),
        (7.4, LORA, "failure", "finetune.base: nf4 needs 6."),
        (7.4, training("nf4"), "ok", ""),
        (5.0, LORA, "failure", "free is needed: see nvidia-smi"),
    ],
)
def test_a_small_card_is_told_what_fits(free, asked, state, advice):
    judged = checks.gpu_memory(machine(replace(RTX4090, free=int(free * GIB))), asked)
    assert (judged.state == state and judged.remedy.endswith(advice)) or advice in judged.remedy
    assert ("finetune" in judged.remedy) == ("finetune" in advice)


def test_the_gpu_with_the_least_memory_counts_among_those_that_are_used():
    two = replace(SERVER, gpus=(H100, replace(H100, free=GIB)))
    assert checks.gpu_memory(two, LORA).state == "ok"
    assert checks.gpu_memory(two, replace(LORA, gpus=2)).state == "failure"


@pytest.mark.parametrize(
    ("version", "cuda", "state", "remedy"),
    [
        ("580.65.06", 13, "ok", ""),
        ("580.65.06", 12, "ok", ""),
        ("550.54.15", 12, "ok", ""),
        ("550.54.15", 13, "failure", "requirements/torch-cuda12.lock"),
        ("550.54.15", None, "failure", "requirements/torch-cuda12.lock"),
        ("590.1", None, "failure", "requirements/torch-cuda.lock"),
        ("470.82.01", 12, "failure", "update the driver to 580, at least to 525"),
        ("[N/A]", 13, "failure", "update the driver to 580"),
    ],
)
def test_the_driver_decides_the_lock(version, cuda, state, remedy):
    facts = machine(replace(RTX4090, driver=version), cuda=cuda)
    judged = checks.driver(facts, LORA)
    assert judged.state == state and remedy in judged.remedy
    # the embedded world is then trained on the CPU
    expected = "ok" if state == "ok" or cuda is None else "warning"
    assert checks.driver(facts, TINY).state == expected


def test_set_up_knows_the_same_drivers():
    assert sorted(map(int, re.findall(r"-ge (\d+)", (ROOT / "Makefile").read_text()))) == sorted(
        checks.DRIVERS.values()
    )
    assert all((ROOT / lock).is_file() for lock in checks.LOCKS.values())


def test_a_gpu_without_bfloat16():
    old = machine(replace(RTX4090, name="Tesla T4", capability=7.5))
    assert states(old, LORA) == {"compute capability": "failure"}
    assert "CUDA_VISIBLE_DEVICES=" in checks.capability(old, TINY).remedy
    assert states(replace(old, cuda=None), TINY) == {}


def test_a_gpu_that_does_not_multiply_in_8_bits():
    a100 = machine(replace(H100, name="A100", capability=8.0))
    assert states(a100, replace(LORA, fp8=True)) == {"compute capability": "failure"}
    assert "base at full" in checks.capability(a100, replace(LORA, fp8=True)).remedy
    assert states(a100, LORA) == states(machine(RTX4090), replace(LORA, fp8=True)) == {}


@pytest.mark.parametrize(
    ("change", "asked", "name", "state"),
    [
        ({"torch": None}, LORA, "NVIDIA driver", "failure"),
        ({"gpus": (replace(H100, total=0, free=0),)}, LORA, "GPU memory", "warning"),
        ({"shared": 2**26}, replace(LORA, gpus=1, ray=True), "/dev/shm", "warning"),
        ({"open_files": 256}, LORA, "open files", "warning"),
        ({"disk": 5 * GIB}, replace(LORA, kept=6 * GIB), "disk", "failure"),
        ({"disk": 5 * GIB}, replace(LORA, fetched=6 * GIB), "disk", "failure"),
        ({"disk": 5 * GIB}, replace(LORA, kept=4 * GIB, checkpoints=4 * GIB), "disk", "warning"),
        ({}, replace(LORA, unsized=1), "disk", "warning"),
        ({"compilers": ("C",)}, LORA, "compilers", "failure"),
        ({"headers": False}, LORA, "compilers", "failure"),
        ({"skew": 30.0}, LORA, "clock", "warning"),
        ({"skew": -30.0}, LORA, "clock", "warning"),
        ({"behind": 7200.0}, LORA, "clock", "warning"),
        ({"encoding": "ANSI_X3.4-1968"}, LORA, "locale", "warning"),
        ({"unwritable": ("output",)}, LORA, "write permission", "failure"),
        ({"file_system": "nfs4"}, LORA, "file system", "warning"),
        ({"file_system": "fuse.sshfs"}, LORA, "file system", "warning"),
        ({"unreachable": {"a": "refused"}}, replace(LORA, addresses=("http://a",)), "network", "failure"),
        ({}, replace(LORA, lacking=("mine",)), "network", "failure"),
        ({"locked": False}, LORA, "packages", "warning"),
        ({}, replace(LORA, foreign=("assets.llm is another",)), "rules", "warning"),
    ],
)
def test_one_fact_makes_one_check_speak_and_it_has_a_remedy(change, asked, name, state):
    judged = [check for check in checks.judge(replace(SERVER, **change), asked) if check.state != "ok"]
    assert [(check.name, check.state) for check in judged] == [(name, state)]
    assert judged[0].remedy


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"shared": 2**26}, LORA),
        ({"open_files": -1}, LORA),
        ({"lockable": 2**23}, LORA),
        ({"unreachable": None}, replace(LORA, addresses=("http://a",))),
        ({"encoding": "utf8"}, LORA),
    ],
)
def test_what_does_not_matter_is_in_order(change, asked):
    assert states(replace(SERVER, **change), asked) == {}


def test_compilers_are_not_needed_on_the_cpu():
    assert states(replace(LAPTOP, compilers=(), headers=False), TINY) == {}


def test_a_limit_of_locked_memory_matters_where_the_optimizer_lies_on_the_host():
    assert states(machine(lockable=2**23), FULL) == {"locked memory": "warning"}


def test_the_quick_part_stops_at_the_first_failure_and_returns_warnings():
    with pytest.raises(UserError, match=r"cannot do it, NVIDIA driver: .*torch-cuda12\.lock"):
        checks.assert_able(machine(replace(RTX4090, driver="550.1")), LORA)
    warned = checks.assert_able(replace(machine(memory=128), available=20 * GIB), FULL)
    assert [check.name for check in warned] == ["host memory"]


def test_the_work_of_a_configuration(monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = work.of(config.read("workflow/config/baseline_10k.yaml"), present=lambda name: False)
    assert (asked.gpus, asked.kinds, asked.rank) == (1, ("pretrain", "lora"), 16)
    assert asked.addresses and asked.kept > 2 * 2 * SIZES["2B"].parameters
    full = work.of(config.read("workflow/config/track_200k.yaml"), present=lambda name: False)
    assert full.kinds == ("pretrain", "full")
    there = work.of(config.read("workflow/config/baseline_10k.yaml"), present=lambda name: True)
    assert (there.addresses, there.fetched, there.unsized) == ((), 0, 0)
    tiny = work.of(config.read("workflow/config/tiny.yaml"), present=lambda name: False)
    assert (tiny.gpus, tiny.kinds, tiny.addresses) == (0, ("pretrain", "lora"), ())
    assert tiny.lacking == () and there.lacking == ()
    finals = work.of(config.read("workflow/config/finals.yaml"), present=lambda name: False)
    assert finals.lacking == ("own-mgm-2b",)


def test_only_models_that_a_recipe_names_are_fetched(monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = []
    work.of(config.read("workflow/config/baseline_10k.yaml"), present=lambda name: asked.append(name) or True)
    assert {"gemma-2b-it", "blip2-opt-2.7b", "eval_stage_1"} <= set(
        asked
    ) and "nsfw_image_detection" not in asked


@pytest.mark.parametrize(
    ("division", "base", "kind"),
    [("closed", "full", "full"), ("open", "full", "lora"), ("open", "nf4", "nf4"), ("open", "fp8", "lora")],
)
def test_how_a_configuration_finetunes(division, base, kind):
    assert work.finetuning(division, base) == kind
