"""Both stages and exact resume after kill -9, on tiny random models."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from tiny_training import finetune, merge, pretrain, relist

from toolkit import scales
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.mgm import checkpoint
from toolkit.train.dataset import Conversations
from toolkit.train.trainer import Plan

KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from tiny_training import pretrain
from toolkit.train.trainer import Trainer
step = Trainer._step

def kill(self, number, *rest):
    return os.kill(os.getpid(), signal.SIGKILL) if number == 5 else step(self, number, *rest)

Trainer._step = kill
llm, clip, convnext, samples, images, output = map(Path, sys.argv[1:])
parts = SimpleNamespace(llm=llm, clip=clip, convnext=convnext)
pretrain(parts, SimpleNamespace(samples=samples, images=images), output)
"""  # dies before its sixth step


TERMINATED = KILLED.replace(
    "return os.kill(os.getpid(), signal.SIGKILL) if number == 5 else step(self, number, *rest)",
    "number == AT and os.system('kill -TERM 0'); return step(self, number, *rest)",
)  # everyone of its group is told to end, as by a cluster


def outputs(folder: Path) -> dict[str, str]:
    return {
        path.name: sha256(path)
        for path in folder.iterdir()
        if path.is_file() and path.name != "monitor.jsonl"
    }


def test_only_projector_and_mining_modules_are_pretrained(trained, parts):
    before = checkpoint.build(parts.llm, parts.clip, parts.convnext, seed=1, image_size_aux=128)
    after = torch.load(trained / "pretrain" / "mm_projector.bin", weights_only=True)
    changed = {
        name
        for name, tensor in checkpoint.official_state(before).items()
        if name in after and not torch.equal(tensor.to(after[name].dtype), after[name])
    }
    # their gradient is zero
    never = {"model.vlm_uni_aux_projector.0.bias", "model.vlm_uni_aux_projector.1.bias"}
    expected = {name for name in after if "mm_projector" in name or "vlm_uni" in name} - never
    # a GPU writes bf16, in which a small change may vanish
    assert changed == expected if not torch.cuda.is_available() else changed and changed <= expected


def test_log_and_record(trained):
    lines = [
        ast.literal_eval(line) for line in (trained / "pretrain" / "pretrain.log").read_text().splitlines()
    ]
    record = json.loads((trained / "pretrain" / "run.json").read_text())
    assert record["settings"]["global_batch"] == 8 and record["settings"]["accumulation"] == 2
    steps = record["results"]["steps"]
    # 60 rows in micro-batches of 4; the fifteenth micro-batch is left over, as in Transformers' Trainer
    assert steps == 15 // 2
    assert len(lines) == steps + 1
    assert [line["learning_rate"] for line in lines[:-1]] == [
        Plan(**{k: record["settings"][k] for k in Plan.__annotations__}).rate(k + 1) for k in range(steps)
    ]
    assert not list(trained.glob("*/checkpoint-*"))


@pytest.mark.numerics
def test_a_killed_run_ends_with_the_same_bits(trained, parts, conversations, tmp_path):
    output = tmp_path / "pretrain"
    arguments = [parts.llm, parts.clip, parts.convnext, conversations.samples, conversations.images, output]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == -signal.SIGKILL
    assert (output / "checkpoint-4").exists() and not (output / "mm_projector.bin").exists()
    pretrain(parts, conversations, output)
    assert outputs(output) == outputs(trained / "pretrain")


@pytest.mark.numerics
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_run_that_is_told_to_end_saves_its_step_and_ends_with_the_same_bits(
    at, trained, parts, conversations, tmp_path
):
    output = tmp_path / "pretrain"
    arguments = [parts.llm, parts.clip, parts.convnext, conversations.samples, conversations.images, output]
    command = [sys.executable, "-c", TERMINATED.replace("AT", str(at)), *arguments]
    done = forks.run(command, start_new_session=True)
    assert f"ended by SIGTERM after step {at + 1} of 7: run the same command again" in done.stderr
    assert done.returncode == 1 and [path.name for path in output.glob("checkpoint-*")] == [
        f"checkpoint-{at + 1}"
    ]
    pretrain(parts, conversations, output)
    assert outputs(output) == outputs(trained / "pretrain")


@pytest.mark.numerics
def test_a_run_that_is_told_to_end_in_its_last_step_finishes(trained, parts, conversations, tmp_path):
    output = tmp_path / "pretrain"
    arguments = [parts.llm, parts.clip, parts.convnext, conversations.samples, conversations.images, output]
    command = [sys.executable, "-c", TERMINATED.replace("AT", "6"), *arguments]
    forks.run(command, start_new_session=True, check=True)
    assert outputs(output) == outputs(trained / "pretrain")


@pytest.mark.numerics
def test_lora_with_dropout_resumes_exactly(trained, parts, conversations, tmp_path, monkeypatch):
    from toolkit.train.trainer import Trainer

    step = Trainer._step

    def stop(self, number, samples, stepper):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, samples, stepper)

    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(parts, conversations, trained / "pretrain" / "mm_projector.bin", tmp_path / "finetune")
    assert (tmp_path / "finetune" / "checkpoint-4").exists()
    monkeypatch.setattr(Trainer, "_step", step)
    finetune(parts, conversations, trained / "pretrain" / "mm_projector.bin", tmp_path / "finetune")
    assert outputs(tmp_path / "finetune") == outputs(trained / "finetune")


def test_a_checkpoint_of_other_settings_is_not_continued(
    trained, parts, conversations, tmp_path, monkeypatch
):
    from toolkit.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "finish", lambda self: None)
    pretrain(parts, conversations, tmp_path / "pretrain", seed=2)
    assert list((tmp_path / "pretrain").glob("checkpoint-*"))
    monkeypatch.undo()
    pretrain(parts, conversations, tmp_path / "pretrain", seed=1)
    assert sha256(tmp_path / "pretrain" / "mm_projector.bin") == sha256(
        trained / "pretrain" / "mm_projector.bin"
    )


@pytest.mark.parametrize(("decided_by", "value"), [("code.digest", "0"), ("versions", {})])
def test_a_checkpoint_of_other_code_or_packages_is_not_continued(
    parts, conversations, tmp_path, monkeypatch, capsys, decided_by, value
):
    from toolkit.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "finish", lambda self: None)
    pretrain(parts, conversations, tmp_path / "pretrain")
    pretrain(parts, conversations, tmp_path / "pretrain")
    assert "continuing pretrain after step 6" in capsys.readouterr().out
    monkeypatch.setattr(f"toolkit.train.stages.{decided_by}", lambda *names: value)
    pretrain(parts, conversations, tmp_path / "pretrain")
    assert "continuing" not in capsys.readouterr().out


def test_a_damaged_checkpoint_is_dropped(trained, parts, conversations, tmp_path, monkeypatch, capsys):
    from toolkit.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "finish", lambda self: None)
    pretrain(parts, conversations, tmp_path / "pretrain")
    monkeypatch.undo()
    (state,) = (tmp_path / "pretrain").glob("checkpoint-*/state.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    pretrain(parts, conversations, tmp_path / "pretrain")
    assert "cannot be read and is dropped" in capsys.readouterr().err
    assert outputs(tmp_path / "pretrain") == outputs(trained / "pretrain")


def damaged_states(folder: Path):
    """(what was done, the damage) for a checkpoint's folder."""
    state, tensors = folder / "state.json", folder / "state.safetensors"
    value = json.loads(state.read_text())
    for key in value:
        yield (
            f"without {key}",
            lambda key=key: state.write_text(json.dumps({k: v for k, v in value.items() if k != key})),
        )
    yield "another step", lambda: state.write_text(json.dumps(value | {"step": value["step"] + 1}))
    yield "fewer lines", lambda: state.write_text(json.dumps(value | {"lines": value["lines"][1:]}))
    yield "no object", lambda: state.write_text("7")
    yield "no execution", lambda: state.write_text(json.dumps(value | {"execution": {"tokens": 1}}))
    yield "another bit", lambda: tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")


def test_a_checkpoint_whose_files_are_not_those_that_were_written_is_dropped(
    parts, conversations, tmp_path, monkeypatch, capsys
):
    from toolkit.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "finish", lambda self: None)
    pretrain(parts, conversations, tmp_path / "pretrain")
    (folder,) = (tmp_path / "pretrain").glob("checkpoint-*")
    shutil.copytree(folder, tmp_path / "kept")
    monkeypatch.setattr(Trainer, "run", lambda self, *_: pytest.fail("it trains"))
    with pytest.raises(BaseException, match="it trains"):
        pretrain(parts, conversations, tmp_path / "pretrain")
    assert f"continuing pretrain after step {folder.name[-1]}" in capsys.readouterr().out
    for what, damage in damaged_states(folder):
        damage()
        with pytest.raises(BaseException, match="it trains"):
            pretrain(parts, conversations, tmp_path / "pretrain")
        captured = capsys.readouterr()
        assert (
            f"{folder} cannot be read and is dropped: state." in captured.err
            and "continuing" not in captured.out
        ), what
        assert not folder.exists()
        shutil.copytree(tmp_path / "kept", folder)


def test_only_checkpoints_are_read_and_deleted(trained, parts, conversations, tmp_path):
    output = tmp_path / "pretrain"
    mine = [
        "checkpoint-1-keep/mine.txt",
        "checkpoint-2.bak/state.json",
        "checkpoint-3/mine.txt",
        "checkpoint-x/state.safetensors",
    ]
    mine += [
        "checkpoint-02/state.safetensors",
        "checkpoint-5",
        "checkpoint-9/state.json",
        ".checkpoint.tmp/mine.txt",
    ]
    for name in mine:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    (output / "checkpoint-7.bak").mkdir()
    (output / "checkpoint-4").mkdir()  # empty: nothing is lost
    (output / "checkpoint-11").symlink_to(output / "checkpoint-02")
    pretrain(parts, conversations, output)
    kept = {
        name: path
        for name in mine
        for path in output.rglob(name.rpartition("/")[2])
        if path.is_file() and path.read_text() == "mine"
    }
    assert kept.keys() == set(mine) and all((output / name).is_file() for name in mine[:-1])
    assert (output / "checkpoint-7.bak").is_dir() and (output / "checkpoint-11").is_symlink()
    assert outputs(output).items() >= outputs(trained / "pretrain").items()


def test_what_stands_where_a_checkpoint_will_is_named_before_training(parts, conversations, tmp_path):
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-4" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"checkpoint-4 is not a checkpoint of a training, .*: move it away$"):
        pretrain(parts, conversations, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint-4" / "mine.txt").read_text() == "mine"


def projector_of(trained, folder: Path) -> Path:
    """A pretraining's folder to damage: its projector's file."""
    return shutil.copytree(trained / "pretrain", folder) / "mm_projector.bin"


PROJECTORS = {
    "no tensor": (lambda old: {}, "holds no mm_projector"),
    "half of them": (lambda old: dict(list(old.items())[::2]), "it lacks model.mm_projector.0.bias"),
    "one mining tensor less": (
        lambda old: {k: v for k, v in old.items() if k != "model.vlm_uni_val_projector.1.bias"},
        "it lacks model.vlm",
    ),
    "one more": (
        lambda old: old | {"model.norm.weight": torch.ones(64)},
        "unexpected tensor model.norm.weight",
    ),
    "another shape": (
        lambda old: old | {"model.mm_projector.0.bias": torch.ones(7)},
        r"model.mm_projector.0.bias has shape \[7\]",
    ),
    "no towers": (
        lambda old: {k: v for k, v in old.items() if "vision_tower" not in k},
        "it lacks model.vision_tower",
    ),
    "another tower": (
        lambda old: {k: v + ("patch_emb" in k) for k, v in old.items()},
        "was trained with another tower than the given tower",
    ),
    "another high-resolution tower": (
        lambda old: {k: v + (".gamma" in k) for k, v in old.items()},
        "was trained with another tower",
    ),
}


@pytest.mark.parametrize(("change", "problem"), PROJECTORS.values(), ids=PROJECTORS)
def test_a_projector_that_is_not_the_pretrained_one_is_refused(
    change, problem, trained, parts, conversations, tmp_path
):
    file = projector_of(trained, tmp_path / "p")
    torch.save(change(torch.load(file, weights_only=True)), file)
    with pytest.raises(UserError, match=r"mm_projector.bin is not the file that .*run.json lists \(sha256\)"):
        finetune(parts, conversations, file, tmp_path / "f")
    relist(file.parent, file.name)
    with pytest.raises(UserError, match=f"mm_projector.bin .*{problem}"):
        finetune(parts, conversations, file, tmp_path / "f")


@pytest.mark.parametrize("wrong", ["images", "strategy"])
def test_a_training_that_cannot_begin_leaves_the_earlier_one(wrong, trained, parts, conversations, tmp_path):
    shutil.copytree(trained / "finetune", tmp_path / "f")
    before = {path.name: sha256(path) for path in (tmp_path / "f").iterdir() if path.is_file()}
    (tmp_path / "empty").mkdir()
    data = SimpleNamespace(samples=conversations.samples, images=tmp_path / "empty")
    with pytest.raises(UserError):
        if wrong == "images":
            finetune(parts, data, projector_of(trained, tmp_path / "p"), tmp_path / "f")
        else:
            projector = projector_of(trained, tmp_path / "p")
            finetune(parts, conversations, projector, tmp_path / "f", strategy="distillation")
    assert {path.name: sha256(path) for path in (tmp_path / "f").iterdir() if path.is_file()} == before


def test_a_projector_without_a_record_is_used_and_said(trained, parts, conversations, tmp_path, capsys):
    file = projector_of(trained, tmp_path / "p")
    (file.parent / "run.json").unlink()
    finetune(parts, conversations, file, tmp_path / "f")
    assert f"{file} has no run.json beside it" in capsys.readouterr().err
    assert sha256(tmp_path / "f" / "adapter_model.safetensors") == sha256(
        trained / "finetune" / "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda old: old | {"stage": "finetune"}, "is the record of the stage 'finetune', not of 'pretrain'"),
        (
            lambda old: {k: v for k, v in old.items() if k != "inputs"},
            "is not a record of a stage: inputs: Field required",
        ),
        (lambda old: old | {"outputs": {}}, "is not the file that"),
        (
            lambda old: old | {"inputs": old["inputs"] | {"clip": old["inputs"]["llm"]}},
            "was trained on another base",
        ),
        (lambda old: [], "is not a record of a stage"),
    ],
)
def test_a_pretraining_s_record_has_to_fit(change, problem, trained, parts, conversations, tmp_path):
    file = projector_of(trained, tmp_path / "p")
    record = file.parent / "run.json"
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    with pytest.raises(UserError, match=problem):
        finetune(parts, conversations, file, tmp_path / "f")


def test_a_base_model_that_is_not_the_fetched_one_is_refused(trained, parts, conversations, tmp_path):
    clip = shutil.copytree(parts.clip, tmp_path / "clip")
    files = {path.name: {"sha256": sha256(path)} for path in clip.iterdir()}
    (clip / "manifest.json").write_text(json.dumps({"asset": "a clip", "source": {}, "files": files}))
    config = json.loads((clip / "config.json").read_text())
    del config["num_attention_heads"]  # CLIP's default would take its place
    (clip / "config.json").write_text(json.dumps(config))
    other = SimpleNamespace(llm=parts.llm, clip=clip, convnext=parts.convnext)
    with pytest.raises(
        UserError,
        match=r"clip/config.json is not the file that .*manifest.json lists \(sha256\): fetch",
    ):
        pretrain(other, conversations, tmp_path / "p")


OLD = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "non_lora_trainables.bin",
    "merge.json",
    "merged/config.json",
]


def test_only_what_a_training_wrote_is_deleted(trained, parts, conversations, tmp_path):
    output, projector = tmp_path / "f", trained / "pretrain" / "mm_projector.bin"
    shutil.copytree(trained / "finetune", output, ignore=shutil.ignore_patterns("merge*"))
    assert merge(parts, output) == 0 and all((output / name).exists() for name in OLD)
    mine = [
        "adapter_notes.md",
        "tokenizer_of_mine.json",
        "model-notes.safetensors.txt",
        "merged/notes.txt",
        "merged-keep/config.json",
    ]
    mine += ["model.safetensors", "adapter_old/adapter_config.json", "tokenizer/x.json"]
    for name in mine:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    finetune(parts, conversations, projector, output, "closed")
    assert all((output / name).read_text() == "mine" for name in mine) and not any(
        (output / name).exists() for name in OLD
    )
    finetune(parts, conversations, projector, output)
    assert all((output / name).read_text() == "mine" for name in mine)
    assert (
        not (output / "model-00001-of-00001.safetensors").exists()
        and not (output / "tokenizer.json").exists()
    )
    assert sha256(output / "adapter_model.safetensors") == sha256(
        trained / "finetune" / "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "run.json", "mm_projector.bin", "model-00001-of-00002.safetensors"],
)
def test_a_folder_with_files_of_ones_own_is_not_trained_into(name, trained, parts, conversations, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        UserError, match=f"{name} was not written by a training: move it away, or choose another folder"
    ):
        finetune(parts, conversations, trained / "pretrain" / "mm_projector.bin", tmp_path)
    assert (tmp_path / name).read_text() == "{}"
    with pytest.raises(UserError, match=f"{name} was not written by a training"):
        pretrain(parts, conversations, tmp_path)


def test_a_stage_is_not_written_over_another(trained, parts, conversations, tmp_path):
    output = projector_of(trained, tmp_path / "p").parent
    before = outputs(output)
    with pytest.raises(UserError, match=r"run.json is the record of the stage 'pretrain', not of 'finetune'"):
        finetune(parts, conversations, trained / "pretrain" / "mm_projector.bin", output)
    assert outputs(output) == before


def test_closed_division_trains_the_language_model(trained, parts, conversations, tmp_path):
    shutil.copytree(trained / "finetune", tmp_path / "closed")  # a LoRA training lay there before
    finetune(parts, conversations, trained / "pretrain" / "mm_projector.bin", tmp_path / "closed", "closed")
    assert merge(parts, tmp_path / "closed") == 0
    results = json.loads((tmp_path / "closed" / "merge.json").read_text())["results"]
    assert not list((tmp_path / "closed").glob("*adapter*")) and not (tmp_path / "closed" / "merged").exists()
    assert results["checkpoint"] == "." and results["max_logit_difference"] is None
    model = checkpoint.load_checkpoint(tmp_path / "closed")
    assert not torch.equal(
        model.model.layers[0].mlp.up_proj.weight,
        checkpoint.Weights(parts.llm)["model.layers.0.mlp.up_proj.weight"].float(),
    )


def rewritten(conversations, folder: Path, change) -> SimpleNamespace:
    """The samples with `change(number, row)` made to each row."""
    rows = json.loads(conversations.samples.read_text())
    for number, row in enumerate(rows):
        change(number, row)
    (folder / "samples.json").write_text(json.dumps(rows))
    return SimpleNamespace(samples=folder / "samples.json", images=conversations.images)


@pytest.mark.parametrize("answer", ["a <eos> cup", "a <pad> cup", "<start_of_turn>model\n", ""])
def test_a_step_without_a_labelled_token_is_refused(parts, conversations, tmp_path, answer):
    data = rewritten(
        conversations, tmp_path, lambda number, row: row["conversations"][1].update(value=answer)
    )
    with pytest.raises(UserError, match="all 8 rows of step 1 have no labelled token"):
        pretrain(parts, data, tmp_path / "out")
    assert not (tmp_path / "out" / "mm_projector.bin").exists()


def test_rows_without_a_labelled_token_are_counted(parts, conversations, tmp_path, capsys):
    long = "<image>\n" + "why " * 400  # the tiny scale reads 256 tokens

    def change(number, row):
        if number % 10 == 1:
            row["conversations"][0]["value"] = long
        elif number % 10 == 2:
            row["conversations"].append({"from": "human", "value": "and then?"})

    pretrain(parts, rewritten(conversations, tmp_path, change), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    rows = record["results"]["rows_without_labels"]
    assert 8 <= rows <= 12  # of 56 that are trained on
    error = capsys.readouterr().err
    assert "warning: " in error and f"{rows} of 60 rows had no labelled token and trained nothing" in error


def test_rows_that_do_not_show_their_image_are_counted_or_refused(parts, conversations, tmp_path, capsys):
    def hide(number, row, every=1):
        if number % every == 0:
            row["conversations"][0]["value"] = "what is this?"

    with pytest.raises(
        UserError, match=r"48 of 48 rows with an image have no <image> in any turn: no image would be seen"
    ):
        pretrain(parts, rewritten(conversations, tmp_path, hide), tmp_path / "out")
    Conversations(
        rewritten(conversations, tmp_path, lambda number, row: hide(number, row, 7)).samples,
        conversations.images,
        None,
        None,
        "gemma",
    )
    assert (
        "7 of 48 rows with an image have no <image> in any turn: they are trained on without it"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("at", [3, 6], ids=["with a checkpoint to write", "the last step"])
def test_an_infinite_gradient_ends_training(at, parts, conversations, tmp_path, monkeypatch):
    """Clipped, it makes every weight no number, while the loss of its own step is finite."""
    from toolkit.train.step import Stepper

    run = Stepper.run

    def overflowed(self, samples, accumulation, micro_batch, step):
        loss = run(self, samples, accumulation, micro_batch, step)
        if step == at:
            next(iter(self.optimizer.parameters.values())).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(Stepper, "run", overflowed)
    with pytest.raises(UserError, match=rf"the gradient's norm inf at step {at + 1}: see .*pretrain\.log"):
        pretrain(parts, conversations, tmp_path / "p")
    assert not (tmp_path / "p/run.json").exists() and not (tmp_path / "p" / f"checkpoint-{at + 1}").exists()


def test_captions_without_any_image_are_not_pretrained_on(parts, conversations, tmp_path):
    rows = [
        {key: value for key, value in row.items() if key != "image"}
        for row in json.loads(conversations.samples.read_text())
    ]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    text = SimpleNamespace(samples=tmp_path / "text.json", images=conversations.images)
    with pytest.raises(UserError, match=r"text\.json has no row with an image"):
        pretrain(parts, text, tmp_path / "p")


def test_a_truncated_image_ends_training_with_its_name(parts, conversations, tmp_path):
    shutil.copytree(conversations.images, tmp_path / "images")
    (tmp_path / "images" / "7.jpg").write_bytes((tmp_path / "images" / "7.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"(?i)^sample '000000007': [^\n]*truncated[^\n]*$"):
        damaged = SimpleNamespace(samples=tmp_path / "images" / "samples.json", images=tmp_path / "images")
        pretrain(parts, damaged, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "rows", "pretrain_steps", "finetune_steps"),
    [("baseline_10k", 10_000, 39, 78), ("track_200k", 200_000, 781, 1562)],
)
def test_steps_are_those_of_the_kit(name, rows, pretrain_steps, finetune_steps):
    scale = scales.load(name)
    assert Plan.of(scale.pretrain, rows, 0).steps == pretrain_steps
    assert Plan.of(scale.finetune["closed"], rows, 0).steps == finetune_steps
    assert Plan.of(scale.finetune["closed"], 12_000, 0).steps == 93
    assert Plan.of(scale.finetune["closed"], 240_000, 0).steps == 1875


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (7, "not an object"),
        ({"id": "a"}, "no conversations"),
        ({"conversations": [{"from": "human"}]}, "a turn without the texts"),
        ({"conversations": [{"from": "human", "value": " "}]}, "no word"),
        ({"conversations": [{"from": "human", "value": "x"}], "image": None}, "not a path"),
        (
            {
                "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "<image>"}],
                "image": "a",
            },
            "several turns",
        ),
    ],
)
def test_malformed_rows_are_named(row, problem, parts, conversations, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=f"row 0: .*{problem}"):
        Conversations(tmp_path / "rows.json", conversations.images, None, None, "gemma")
