"""Does the embedded contest tell good data from bad? `python -m toolkit world study --output output/study`

Each seed makes its own seed corpus, projector initialisation and data order; instruction data, benchmarks and zoo are the shipped ones.
Every run is the workflow's own commands: build, synthesize, convert, pretrain, finetune, merge, evaluate. The control answers with the
model of the synthesized data while every question gets another question's image. A study that was interrupted continues.
"""

import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError
from toolkit.files import read_json, write_json
from toolkit.progress import Progress
from toolkit.scales import load
from toolkit.world.words import LETTER

HERE = Path(__file__).parent
ZOO = HERE / "zoo"
RECIPES = {"baseline": "baseline", "synth": "recaption"}
EVALUATION, INSTRUCTION = 1024, 1024  # seeds of the shipped benchmarks and instruction data
SHUFFLE = 7  # seed of the control's permutation
METRICS = {  # name in the table: (benchmark folder, key of score.json, chance in percent)
    "TextVQA": ("textvqa", "accuracy", "2.5 (40 words)"),
    "MMBench, circular": ("mmbench", "circular", "0.4 (25 when all four turns get one guess)"),
    "MMBench, vanilla": ("mmbench", "vanilla", "25"),
}


@dataclass(frozen=True)
class Job:
    """One command of the toolkit and the file that shows it finished."""

    command: list[str]
    done: Path


def corpus(root: Path, seed: int) -> list[Job]:
    """The raw data of one seed."""
    folder = root / f"seed-{seed}"
    build = ["world", "build", "--part", "seed", "--seed", str(10_000 + seed), "--output", str(folder / "corpus")]
    return [Job(build, folder / "corpus" / "mgm_pretrain_stage_1.jsonl")]  # written last


def shared(root: Path) -> list[Job]:
    """Instruction data and benchmarks, the same for all seeds."""
    parts = {"instruction": (INSTRUCTION, "mgm_instruction_stage_1.json"), "evaluation": (EVALUATION, "mmbench/mmbench_dev_20230712.tsv")}
    return [
        Job(["world", "build", "--part", part, "--seed", str(seed), "--output", str(root / part)], root / part / last)
        for part, (seed, last) in parts.items()
    ]


def experiment(root: Path, seed: int, name: str) -> list[Job]:
    """All commands from the raw data to the scores of one experiment, and to the control's for the synthesized one."""
    corpus, folder = root / f"seed-{seed}" / "corpus", root / f"seed-{seed}" / name
    first, second = folder / "MGM-Tiny-Pretrain", folder / "MGM-Tiny-Finetune"
    parts = ["--llm", str(ZOO / "gemma"), "--clip", str(ZOO / "clip"), "--convnext", str(ZOO / "convnext")]
    training = [*parts, "--scale", "tiny", "--seed", str(seed)]
    data = ["data", "synthesize", "--recipe", f"solution/recipes/{RECIPES[name]}.yaml", "--processes", "1"]
    data += ["--samples", str(corpus / "mgm_pretrain_stage_1.jsonl"), "--images", str(corpus)]
    if name != "baseline":
        data += [f"--model=clip={ZOO / 'clip'}", f"--model=captioner={ZOO / 'captioner'}"]
    data += ["--output", str(folder / "data.jsonl"), "--removed", str(folder / "removed.jsonl"), "--record", str(folder / "run.json")]
    convert = ["data", "convert", "--to", "llava", "--original", str(corpus / "stage_1.json"), "--cap", str(load("tiny").cap)]
    instruction, questions = root / "instruction", root / "evaluation"
    finetune = ["train", "finetune", "--samples", str(instruction / "mgm_instruction_stage_1.json"), "--images", str(instruction)]
    finetune += ["--projector", str(first / "mm_projector.bin"), "--division", "open", *training, "--output", str(second)]
    jobs = [
        Job(data, folder / "run.json"),
        Job([*convert, str(folder / "data.jsonl"), str(folder / "llava.json")], folder / "llava.json"),
        Job(
            ["train", "pretrain", "--samples", str(folder / "llava.json"), "--images", str(corpus), *training, "--output", str(first)],
            first / "run.json",
        ),
        Job(finetune, second / "run.json"),
        Job(["train", "merge", "--finetuned", str(second), *parts, "--output", str(second / "merge.json")], second / "merge.json"),
    ]
    controls = {"": []} | ({"-shuffled": ["--shuffle-images", str(SHUFFLE)]} if name == "synth" else {})
    for suffix, option in controls.items():
        results = root / f"seed-{seed}" / f"{name}{suffix}"
        textvqa = ["--questions", str(questions / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl")]
        textvqa += ["--images", str(questions / "textvqa" / "train_images")]
        textvqa += ["--annotations", str(questions / "textvqa" / "TextVQA_0.5.1_val.json")]
        table = ["--table", str(questions / "mmbench" / "mmbench_dev_20230712.tsv"), "--prompt", LETTER]
        for benchmark, inputs in (("textvqa", textvqa), ("mmbench", table)):
            command = ["evaluate", benchmark, "--model", str(second), *inputs, *option, "--output", str(results / benchmark)]
            jobs.append(Job(command, results / benchmark / "score.json"))
    return jobs


def run(job: Job) -> None:
    """Run one command unless its result is there; its output goes to a log beside the result."""
    if job.done.is_file():
        return
    job.done.parent.mkdir(parents=True, exist_ok=True)
    log = job.done.with_name(f"{job.done.name}.log")
    with log.open("w", encoding="utf-8") as handle:
        command = [sys.executable, "-m", "toolkit", *job.command]
        status = subprocess.run(command, stdout=handle, stderr=handle, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    if status:
        raise UserError(f"`python -m toolkit {' '.join(job.command[:2])}` failed with status {status}: see {log}")


def study(root: Path, seeds: int, processes: int) -> dict:
    """Run what is missing on `processes` processes; return the table as data and write study.json."""
    if seeds < 2:
        raise UserError(f"--seeds is {seeds}: a standard deviation needs at least 2")
    if not Path("solution/recipes").is_dir():
        raise UserError("run the study in the project's folder: solution/recipes is not here")
    chains = [[*corpus(root, seed), *experiment(root, seed, "baseline"), *experiment(root, seed, "synth")] for seed in range(1, seeds + 1)]
    progress = Progress("study", sum(map(len, chains)), every=10)

    def follow(jobs: list[Job]) -> None:
        for job in jobs:
            run(job)
            progress.step(note=job.done.parent.as_posix())

    for job in shared(root):
        run(job)
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(follow, chains))
    conditions = {"baseline": "baseline", "synth": "synthesized", "synth-shuffled": "synthesized, images shuffled"}
    table = {}
    for metric, (benchmark, key, chance) in METRICS.items():
        row = {"chance": chance}
        for folder, condition in conditions.items():
            values = [read_json(root / f"seed-{seed}" / folder / benchmark / "score.json")[key] for seed in range(1, seeds + 1)]
            row[condition] = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "values": values}
        raw, synthesized = row["baseline"], row["synthesized"]
        spread = max(raw["sd"], synthesized["sd"])
        row["difference in sd"] = (synthesized["mean"] - raw["mean"]) / spread if spread else None
        table[metric] = row
    result = {"seeds": seeds, "table": table}
    write_json(root / "study.json", result)
    return result


def markdown(result: dict) -> str:
    """The table for people: mean and standard deviation over the seeds; the difference counts the larger of the two deviations."""
    lines = [
        f"| {result['seeds']} seeds, mean ± sd, % | raw baseline | synthesized | difference | synthesized, images shuffled | chance |",
        "|---|---|---|---|---|---|",
    ]
    for metric, row in result["table"].items():
        cells = [f"{row[c]['mean']:.1f} ± {row[c]['sd']:.1f}" for c in ("baseline", "synthesized", "synthesized, images shuffled")]
        difference = "none" if row["difference in sd"] is None else f"{row['difference in sd']:+.1f} sd"
        lines.append(f"| {metric} | {cells[0]} | {cells[1]} | {difference} | {cells[2]} | {row['chance']} |")
    return "\n".join(lines)
