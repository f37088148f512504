"""An entry as the contest's kit leaves it, small where size does not matter."""

import base64
import json
import math
import random
from pathlib import Path

from toolkit.bundle.checks.training import schedule
from toolkit.contest import ruleset
from toolkit.scales import Stage

RULES = ruleset.load("online_2024")
NAME = "MGM-2B-Finetune-own"
PRETRAIN, FINETUNE = "output/training_dirs/MGM-2B-Pretrain-own", f"output/training_dirs/{NAME}"
TEXTVQA = f"output/eval_results/{NAME}/textvqa/bm1.jsonl"
MMBENCH = f"output/eval_results/{NAME}/mmbench/answers/mmbench_dev_20230712/{NAME}.jsonl"
SCRIPT = r"""#!/bin/bash
EXP_NAME=own
PRETRAIN_BATCH_SIZE_PER_GPU=8
########## Editable Part Ends ##########
AUX=768
deepspeed $DIR/training/mgm/train/train_mem.py \
    --version gemma \
    --tune_mm_mlp_adapter True \
    --image_size_aux $AUX \
    --num_train_epochs 1 \
    --learning_rate 1e-3 \
    --weight_decay 0. \
    --model_max_length 2048
deepspeed $DIR/training/mgm/train/train_mem.py \
    --version gemma \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --num_train_epochs 1 \
    --learning_rate 2e-5 \
    --model_max_length 2048
echo "Done."
"""  # of the kit's form; its own lines stand in kit_lines.json as hashes


def log(stage: str, total: int, gpus: int = 8, every: int = 1, seconds: float = 2000.0, **changes) -> str:
    """A log as DeepSpeed and the Trainer write it. changes: of the values, `loss` a function of the step."""
    fixed = RULES.fixed.pretrain if stage == "pretrain" else RULES.fixed.finetune["closed"]
    batch = fixed.global_batch
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(gpus))}).encode()).decode()
    tune = "--tune_mm_mlp_adapter True " if stage == "pretrain" else ""
    lines = [
        "[2024-09-05 04:00:00,185] [INFO] [runner.py:570:main] cmd = python -m deepspeed.launcher.launch "
        f"--world_info={world} train_mem.py {tune}--per_device_train_batch_size 8 "
        f"--gradient_accumulation_steps {changes.get('accumulation', batch // 64)} --logging_steps {every} "
        f"--learning_rate {changes.get('learning_rate', fixed.learning_rate)} --num_train_epochs 1"
    ]
    draw = random.Random(1024)
    curve = changes.get("loss", lambda step: round(2 + 4 * math.exp(-step / 50) + draw.gauss(0, 0.1), 4))
    rates = schedule(Stage.model_construct(**fixed.model_dump()), total)
    losses = []
    for step in range(every, total + 1, every):
        losses.append(curve(step))
        values = {"loss": losses[-1], "grad_norm": draw.random(), "learning_rate": rates[step - 1]}
        lines.append(str({**values, "epoch": round(step / total, 2)}))
        lines.append(f" 50%|#####     | {step}/{total} [00:10<00:10,  5.63s/it]\r")
    closing = {
        "train_runtime": seconds,
        "train_samples_per_second": round(total * batch / seconds, 3),
        "train_loss": changes.get("train_loss", sum(losses) / len(losses)),
    }
    hours, rest = divmod(int(changes.get("passed", seconds + 60)), 3600)
    stamp = f"{4 + hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
    lines += [
        f"100%|##########| {total}/{total} [1:13:44<00:00,  5.67s/it]",
        str(closing),
        f"[2024-09-05 {stamp},001] [INFO] [launch.py:347:main] Process 1 exits successfully.",
    ]
    return "\n".join(lines) + "\n"


def answers() -> tuple[list[dict], list[dict]]:
    """TextVQA's 5,000 and MMBench's 4,377: of a model that answers variously, and picks the same option
    however it is rotated."""
    draw = random.Random(7)
    text = [
        {"question_id": f"{number:05d}", "prompt": f"what is {number}?", "text": f"word{draw.randrange(900)}"}
        for number in range(5000)
    ]
    letters = []
    for base in range(1096):
        chosen = draw.randrange(4)
        for turn in range(4):
            options = [f"option {(place + turn) % 4}" for place in range(4)]
            row = {"question_id": base + turn * 1_000_000, "prompt": f"question {base}", "options": options}
            letters.append(row | {"text": "ABCD"[(chosen - turn) % 4]})
    return text, letters[:4377]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def entry(root: Path) -> Path:
    """A whole entry of the online stage: 10,240 rows, eight GPUs."""
    text, letters = answers()
    files = {
        "solution/readme": "method, run order",
        "solution/requirements.txt": "",
        "solution/recipe.yaml": "process:\n  - image_captioning_mapper:\n      caption_num: 1\n",
        "output/train.sh": SCRIPT,
        f"{PRETRAIN}/pretrain.log": log("pretrain", 40),
        f"{FINETUNE}/finetuning.log": log("finetune", 93),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    rows = [
        {
            "id": f"{number:09d}",
            "text": f"<__dj__image>\na caption {number} <|__dj__eoc|>",
            "images": [f"images/{number}.jpg"],
        }
        for number in range(10_240)
    ]
    write_rows(root / "output/processed_data/processed_data.jsonl", rows)
    write_rows(root / TEXTVQA, text)
    write_rows(root / MMBENCH, letters)
    return root
