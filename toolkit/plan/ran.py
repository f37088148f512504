"""Which timed runs did the work that a configuration asks for: a folder may hold another's under the same
names."""

from collections.abc import Mapping
from pathlib import Path

from toolkit import scales
from toolkit.config import Config
from toolkit.contest.records import read_record
from toolkit.doctor.work import finetuning
from toolkit.errors import UserError
from toolkit.plan.predict import TRAINING, Outlook
from toolkit.plan.work import Job, rate_of, rows_kept, slower

DATA = ("score", "synthesize", "check", "contamination", "convert")


def comparable(config: Config, outlook: Outlook, seconds: Mapping[str, float]) -> dict[str, float]:
    """`seconds` of the planned jobs, by name, whose records say that they did this work. Jobs that leave no
    record (compare to submit) are among them where no other is left out."""
    planned = {each.job.name: each.job for each in outlook.predictions if each.job.name in seconds}
    same = {name: _same_work(config, job) for name, job in planned.items()}
    whole = all(same.values())
    return {name: seconds[name] for name, job in planned.items() if same[name] and (whole or job.text)}


def _same_work(config: Config, job: Job) -> bool:
    """Whether the record of a job is of the same work: data of the configuration's seed by the recipe as it
    is; a training of its scale, way and steps; answers to its questions. True for a job without a record."""
    name = Path(job.name).name
    try:
        if job.rule in DATA:
            return rows_kept(config, name) is not None
        if job.rule in TRAINING:
            settings = read_record(Path(f"output/training_dirs/{name}/run.json"), job.rule).settings
            base = settings.get("base") or settings.get("lora", {}).get("base", "full")
            kind = finetuning(settings["division"], base) if job.rule == "finetune" else "pretrain"
            scale = scales.load(config.scale)
            sight = scale.sight(scale.pretrain) if job.rule == "pretrain" else scale
            rows = settings["steps"] * settings["global_batch"] * slower(scale, sight)
            return settings["scale"] == config.scale and job.amounts == {rate_of(kind, base): rows}
        if job.rule == "merge":
            settings = read_record(Path(f"output/training_dirs/{name}/merge.json"), "merge").settings
            return (settings["scale"], settings["division"]) == (config.scale, config.finetune.division)
        if job.rule.startswith("eval_"):
            benchmark = job.rule.removeprefix("eval_")
            inputs = read_record(
                Path(f"output/eval_results/{name}/{benchmark}/run.json"), f"evaluate {benchmark}"
            ).inputs
            asked = Path("input", config.assets.evaluation)
            return all(
                Path(file.path).is_relative_to(asked) for key, file in inputs.items() if key != "merge"
            )
    except (UserError, KeyError):  # no record, or one of another kind of run
        return False
    return True
