"""The rates of training on this machine, by the commands of toolkit/bench: the trainer's steps, planner and
optimizers on synthetic samples, without any data."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from toolkit.config import Config
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.plan.work import rate_of
from toolkit.train.memory import Kind

STEPS = 2  # timed, after the benchmark's warm-up


def measure(settings: Config, gpus: int) -> dict[str, float]:
    """Samples a second on `gpus` GPUs, 0: on the CPU, in the configuration's two trainings with their frozen
    bases, by `rate_of`. UserError when a measurement fails; it has said why."""
    hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    rates: dict[str, float] = {}
    tuned: Kind = "full" if settings.finetune.division == "closed" else "lora"
    stages: list[tuple[Kind, str]] = [("pretrain", settings.pretrain.base), (tuned, settings.finetune.base)]
    for stage, base in stages:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            bench = [sys.executable, "-m", "toolkit", "bench", "train", "--stage", stage, "--base", base]
            flags = ["--steps", str(STEPS), "--gpus", str(max(gpus, 1)), "--json", str(result)]
            # its rows go where progress goes: the plan alone is printed
            if subprocess.run(
                [*bench, *flags], env=os.environ | hidden, stdout=sys.stderr.fileno(), check=False
            ).returncode:
                raise UserError(
                    f"measuring {stage} failed: plan without --measure, or mend what was said above"
                )
            rates[rate_of(stage, base)] = read_json(result)["samples_per_second"]
    return rates
