"""The whole training path at the real sizes before anything is downloaded: random weights in the official
formats, every command.

PYTHONPATH=. python tests/bench/rehearsal.py FOLDER

Writes the three base models (6 GB) and random JPEG images, pretrains, finetunes with LoRA, merges with its
proof and answers questions, each by the very command of the workflow; prints what each took. What is there
already is not made again, so a rehearsal that was broken off continues. Losses and answers mean nothing.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from toolkit.bench import synthetic
from toolkit.files import read_json, write_json, write_jsonl
from toolkit.mgm.checkpoint import AUX_PREFIX, CLIP_PREFIX, official_state
from toolkit.scales import load
from toolkit.world.questions import textvqa_prompt

TOKENIZER = Path("tests/golden/mgm")
PICTURES = 64  # and as many questions
STAGES = ("pretrain", "finetune", "merge", "textvqa")
SEED = 1024


def base_models(root: Path, size: str) -> dict[str, Path]:
    """Folders of the language model, CLIP and ConvNeXt, in bf16 at the real sizes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = synthetic.model(size, torch.bfloat16 if size == "2B" else torch.float32, device)
    state = {name: tensor.cpu() for name, tensor in official_state(model).items()}
    files = {
        "clip": ("model.safetensors", CLIP_PREFIX, "vision_model."),
        "convnext": ("open_clip_model.safetensors", AUX_PREFIX, "visual.trunk."),
        "llm": ("model.safetensors", ("model.embed_tokens", "model.layers", "model.norm"), None),
    }
    for part, (name, prefix, new) in files.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
        renamed = (
            {new + key.removeprefix(prefix): tensor for key, tensor in tensors.items()} if new else tensors
        )
        save_file(
            {key: tensor.contiguous() for key, tensor in renamed.items()},
            root / part / name,
            metadata={"format": "pt"},
        )
    write_json(root / "clip" / "config.json", model.mgm.clip)
    write_json(
        root / "llm" / "config.json",
        model.mgm.gemma | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / name, root / "llm" / name)
    return {part: root / part for part in files}


def data(root: Path, rows: dict[str, int]) -> None:
    """Images, `rows` samples of each stage, a TextVQA-like question about each image with its annotation."""
    random = np.random.default_rng(SEED)
    (root / "images").mkdir(exist_ok=True)
    for number in range(PICTURES):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(root / "images" / f"{number}.jpg", quality=90)
    words = [
        "a",
        "the",
        "old",
        "red",
        "tree",
        "river",
        "bus",
        "people",
        "two",
        "near",
        "stands",
        "walk",
        "along",
        "numbers",
        "while",
    ]

    def text(count: int) -> str:
        return " ".join(random.choice(words, count))

    for stage, (asked, answered) in {"pretrain": (3, 12), "finetune": (40, 60)}.items():
        samples = []
        for row in range(rows[stage]):
            turns = [
                ("human", f"<image>\n{text(asked)}"),
                ("gpt", text(random.integers(answered // 2, answered))),
            ]
            conversations = [{"from": speaker, "value": value} for speaker, value in turns]
            samples.append({"id": f"{row}", "image": f"{row % PICTURES}.jpg", "conversations": conversations})
        write_json(root / f"{stage}.json", samples)
    asked, annotations = [], []
    for number in range(PICTURES):
        question = f"what is {text(4)}?"
        asked.append(
            {
                "question_id": f"{number}",
                "image": f"{number}.jpg",
                "text": textvqa_prompt(question, text(6).split()),
            }
        )
        annotations.append(
            {"question_id": number, "image_id": f"{number}", "question": question, "answers": [text(1)] * 10}
        )
    write_jsonl(root / "questions.jsonl", asked)
    write_json(root / "annotations.json", {"data": annotations})


def commands(root: Path, parts: dict[str, Path], scale: str) -> dict[str, tuple[Path, list[str]]]:
    """The record of each stage and the workflow's command that writes it."""
    bases = [flag for part, folder in parts.items() for flag in (f"--{part}", str(folder))]
    common = ["--images", str(root / "images"), "--scale", scale, "--seed", str(SEED)]
    pretrained, finetuned = root / "MGM-Pretrain", root / "MGM-Finetune"
    trained = [
        "train",
        "pretrain",
        "--samples",
        str(root / "pretrain.json"),
        *common,
        *bases,
        "--output",
        str(pretrained),
    ]
    tuned = [
        "train",
        "finetune",
        "--samples",
        str(root / "finetune.json"),
        *common,
        *bases,
        "--division",
        "open",
    ]
    tuned += ["--projector", str(pretrained / "mm_projector.bin"), "--output", str(finetuned)]
    merged = [
        "train",
        "merge",
        "--finetuned",
        str(finetuned),
        *bases,
        "--output",
        str(finetuned / "merge.json"),
    ]
    asked = ["evaluate", "textvqa", "--model", str(finetuned), "--questions", str(root / "questions.jsonl")]
    asked += [
        "--images",
        str(root / "images"),
        "--annotations",
        str(root / "annotations.json"),
        "--output",
        str(root / "textvqa"),
    ]
    records = (
        pretrained / "run.json",
        finetuned / "run.json",
        finetuned / "merge.json",
        root / "textvqa" / "run.json",
    )
    return dict(zip(STAGES, zip(records, (trained, tuned, merged, asked), strict=True), strict=True))


def main() -> int:
    """Rehearse; the exit status of the first command that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=tuple(synthetic.CONFIGS), default="2B")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each training")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    a = parser.parse_args()
    name = "tiny" if a.size == "tiny" else "baseline_10k"
    scale, parts = load(name), {part: a.folder / part for part in ("llm", "clip", "convnext")}
    if not (a.folder / "annotations.json").exists():
        start = time.perf_counter()
        parts = base_models(a.folder, a.size)
        rows = {
            "pretrain": a.steps * scale.pretrain.global_batch,
            "finetune": a.steps * scale.finetune["open"].global_batch,
        }
        data(a.folder, rows)
        size = sum(path.stat().st_size for folder in parts.values() for path in folder.iterdir())
        print(
            f"== {time.perf_counter() - start:.0f} s: {size:,} bytes of base models, {rows} samples",
            flush=True,
        )
    for stage, (record, command) in commands(a.folder, parts, name).items():
        start = time.perf_counter()
        if not record.exists():
            if status := subprocess.run([sys.executable, "-m", "toolkit", *command]).returncode:
                return status
            print(
                f"== {time.perf_counter() - start:.0f} s: {stage} {read_json(record)['results']}", flush=True
            )
        if stage == a.until:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
