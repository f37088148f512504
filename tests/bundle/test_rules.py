"""The rules agree with the frozen scales, the workflow's recipes and the locked versions."""

import re
from pathlib import Path

import pytest

from toolkit import scales
from toolkit.bundle import ruleset

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ruleset.names())
def test_rules_fit_the_scales(name):
    rules = ruleset.load(name)
    assert rules.divisions == ["closed", "open"]
    for scale in map(scales.load, rules.scales):
        assert scale.size == rules.size
        assert scale.cap <= rules.cap
        assert set(scale.finetune) == set(rules.divisions)
    assert rules.cap == max(scales.load(scale).cap for scale in rules.scales)


def test_every_scale_has_rules():
    assert sorted(scale for name in ruleset.names() for scale in ruleset.load(name).scales) == scales.names()


def test_online_layout_is_the_kits():
    """The files that the kit's README lists for the online stage, with the names of the size 2B."""
    rules = ruleset.load("online_2024")
    required = {rules.fill(template, "x") for template in rules.required["any"]}
    assert required > {
        "solution/readme",
        "solution/requirements.txt",
        "output/train.sh",
        "output/training_dirs/MGM-2B-Pretrain-x/pretrain.log",
        "output/training_dirs/MGM-2B-Finetune-x/finetune.log",
        "output/training_dirs/MGM-2B-Finetune-x/finetuning.log",
        "output/eval_results/MGM-2B-Finetune-x/textvqa/bm1.jsonl",
    }
    assert not [pattern for pattern in rules.packed if "safetensors" in pattern or "*" in pattern.removeprefix("solution/**/*")]


def test_requirements_are_the_locked_ones():
    locks = "".join((REPOSITORY / "requirements" / name).read_text() for name in ("common.lock", "torch-cpu.lock"))
    locked = dict(re.findall(r"^([a-z0-9-]+)==([0-9][a-z0-9.]*)", locks, flags=re.MULTILINE))
    pinned = re.findall(r"^([a-z0-9-]+)==(.+)$", (REPOSITORY / "solution/requirements.txt").read_text(), flags=re.MULTILINE)
    assert len(pinned) > 10
    for name, version in pinned:
        assert locked[name] == version, name
