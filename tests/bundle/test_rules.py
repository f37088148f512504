"""The rules agree with the frozen scales, the kit's numbers and the locked versions; a wrong set of rules is
refused."""

import re
import shutil
from pathlib import Path

import pytest

from toolkit import scales
from toolkit.bundle.entry import Entry
from toolkit.contest import ruleset
from toolkit.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ruleset.names())
def test_rules_fit_the_scales(name):
    rules = ruleset.load(name)
    assert rules.divisions == ["closed", "open"]
    for scale in map(scales.load, rules.scales):
        assert scale.size == rules.size
        assert set(scale.finetune) == set(rules.divisions)
    assert set(rules.required) == {"any", *rules.divisions} and set(rules.fixed.finetune) == set(
        rules.divisions
    )


def test_caps():
    """Online: MAX_SAMPLE_NUM of the kit's scripts. Offline: of the finals' script. Others: what their
    scales train on."""
    caps = {name: ruleset.load(name).cap for name in ruleset.names()}
    assert caps == {
        "online_2024": 200_000,
        "offline_2024": 5_000,
        "embedded": scales.load("tiny").cap,
        "rehearsal": scales.load("rehearsal_2b").cap,
        "embedded_llama": scales.load("tiny_llama").cap,
        **{
            f"family_{member}{variant}": scales.load(f"family_{member}{variant}").cap
            for member in ("7b", "8b", "13b")
            for variant in ("", "_hd")
        },
    }


@pytest.mark.parametrize("name", ruleset.names())
def test_every_number_of_a_scale_is_fixed_or_editable(name):
    """What a scale's stage holds is either the rules' number or in the kit's editable block."""
    rules = ruleset.load(name)
    assert set(ruleset.Numbers.model_fields) | set(rules.editable) == set(scales.Stage.model_fields)
    assert not set(ruleset.Numbers.model_fields) & set(rules.editable)
    for scale in map(scales.load, rules.scales):
        assert scale.template == rules.fixed.template
        for name in ("pretrain", "finetune"):
            sight = scale.sight(scale.pretrain) if name == "pretrain" else scale
            sizes = rules.fixed.sizes(name).model_dump(include=set(ruleset.Sizes.model_fields))
            assert sizes == sight.settings()
        stages = [(rules.fixed.pretrain, scale.pretrain)]
        stages += [(rules.fixed.finetune[division], scale.finetune[division]) for division in rules.divisions]
        for numbers, stage in stages:
            assert numbers.model_dump().items() <= stage.model_dump().items()


def test_the_kits_numbers():
    """As train_mgm_2b_stage_1.sh passes them to deepspeed."""
    for name in ("online_2024", "offline_2024"):
        fixed = ruleset.load(name).fixed
        assert (fixed.model_max_length, fixed.image_size_aux, fixed.template) == (2048, 768, "gemma")
        for numbers, batch, rate, aspect, grouped in (
            (fixed.pretrain, 256, 1e-3, "square", False),
            (fixed.finetune["closed"], 128, 2e-5, "pad", True),
        ):
            assert numbers.model_dump() == {
                "global_batch": batch,
                "learning_rate": rate,
                "warmup_ratio": 0.03,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "epochs": 1,
                "image_aspect_ratio": aspect,
                "group_by_modality_length": grouped,
            }


@pytest.mark.parametrize("name", ruleset.names())
def test_hashes_of_the_kit(name):
    """The same in all rules; the ends of each hash as they were read from independent copies of the kit."""
    rules = ruleset.load(name)
    ends = {file: (digest[:8], digest[-4:]) for file, digest in rules.fixed_files.items()}
    assert ends == {
        "check_global_batch_size.py": ("555a9529", "81cc"),
        "check_sample_number.py": ("9782b300", "dd6b"),
        "mmbench.sh": ("88a12ae9", "8505"),
        "textvqa.sh": ("3c8274d7", "68f1"),
    }
    assert all(
        re.fullmatch("[0-9a-f]{64}", digest)
        for digest in [*rules.fixed_files.values(), *rules.fixed_parts.values()]
    )
    assert rules.fixed_parts == ruleset.load("online_2024").fixed_parts


def test_every_fact_has_its_source():
    """Rules are data with reasons: each of these keys has a comment on its line or above it, in the rules or
    those they extend."""
    for name in ruleset.names():
        lines = [line for path in ruleset.files(name) for line in path.read_text().splitlines()]
        for key in (
            "cap",
            "weights",
            "limits",
            "fixed",
            "editable",
            "fixed_files",
            "fixed_parts",
            "synthesis",
        ):
            number = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
            assert "#" in lines[number] or lines[number - 1].startswith("#"), (name, key)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("weights: required", "weights: some", "weights"),
        ("cap: 3000", "cap: many", "cap"),
        (
            "    global_batch: 8\n  finetune:",
            "    global_batch: many\n  finetune:",
            "fixed.pretrain.global_batch",
        ),
        ("extends: offline_2024", "extends: mine", "mine.yaml extends mine, which extends it"),
        ("extends: offline_2024", "extends: nothing", "unknown rules 'nothing'"),
        ("scales: [tiny]", "scale: [tiny]", "scale"),
        ("files: 10000,", "files: 0,", "limits.files"),
    ],
)
def test_wrong_rules_are_refused(tmp_path, monkeypatch, old, new, problem):
    text = (ruleset.HERE / "embedded.yaml").read_text()
    assert old in text
    for name in ("online_2024", "offline_2024"):
        shutil.copy(ruleset.HERE / f"{name}.yaml", tmp_path)
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    monkeypatch.setattr(ruleset, "HERE", tmp_path)
    with pytest.raises(UserError, match=re.escape(problem)):
        ruleset.load("mine")


def test_an_extension_merges_sections_and_adds_to_lists():
    base = {"a": {"b": 1, "c": [1]}, "d": [1], "e": 2}
    assert ruleset.extend(base, {"a": {"c+": [2], "b": 3}, "d": [4], "f+": [5]}) == {
        "a": {"b": 3, "c": [1, 2]},
        "d": [4],
        "e": 2,
        "f": [5],
    }
    assert base == {"a": {"b": 1, "c": [1]}, "d": [1], "e": 2}


def test_every_scale_has_rules():
    assert {scale for name in ruleset.names() for scale in ruleset.load(name).scales} == set(scales.names())


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
    }
    assert {"output/eval_results/MGM-2B-Finetune-x/textvqa/bm1.jsonl"} < set(
        Entry(Path(), "x", rules).evaluated("textvqa")
    )
    assert not [
        pattern
        for pattern in rules.packed
        if "safetensors" in pattern or "*" in pattern.removeprefix("solution/**/*")
    ]


def test_offline_layout_adds_data_and_weights():
    online, offline = ruleset.load("online_2024"), ruleset.load("offline_2024")
    assert set(offline.required["any"]) > set(online.required["any"]) and set(offline.packed) > set(
        online.packed
    )
    added = {
        offline.fill(template, "x") for template in set(offline.required["any"]) - set(online.required["any"])
    }
    assert {
        "output/processed_data/x/processed_data.jsonl",
        "output/training_dirs/MGM-2B-Pretrain-x/mm_projector.bin",
    } <= added
    assert online.weights == "forbidden" and offline.weights == "required"


def test_requirements_are_the_locked_ones():
    locks = "".join(
        (REPOSITORY / "requirements" / name).read_text() for name in ("common.lock", "torch-cpu.lock")
    )
    locked = dict(re.findall(r"^([a-z0-9-]+)==([0-9][a-z0-9.]*)", locks, flags=re.MULTILINE))
    pinned = re.findall(
        r"^([a-z0-9-]+)==(.+)$", (REPOSITORY / "solution/requirements.txt").read_text(), flags=re.MULTILINE
    )
    assert len(pinned) > 10
    for name, version in pinned:
        assert locked[name] == version, name
