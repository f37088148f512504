"""When a run will be done: by what its running jobs say, and by what `plan` predicts for the others, at the
pace of those that are done."""

from collections.abc import Mapping
from functools import lru_cache
from statistics import mean

from toolkit import config
from toolkit.errors import UserError
from toolkit.plan.cli import outlook_here
from toolkit.plan.predict import Outlook
from toolkit.watch.run import Job, Run
from toolkit.watch.stage import Stage


@lru_cache(maxsize=1)
def outlook_of(configs: tuple[str, ...], done: int) -> Outlook | None:
    """What `plan` predicts for a run's configuration after `done` jobs, which may have made its rows known;
    None where there is no prediction, and for a configuration that is not in one file."""
    try:
        return outlook_here(config.read(configs[0])) if len(configs) == 1 else None
    except UserError:
        return None


def job_seconds(job: Job, said: Stage, predicted: float | None, now: float) -> float | None:
    """Seconds that a running job still needs; None: not known. A job that is not a training may count several
    things in turn, so what it says is the least."""
    by_plan = None if predicted is None else max(0.0, predicted - (now - job.started))
    if said.seconds is None:
        return by_plan
    return said.seconds if by_plan is None or said.whole else max(said.seconds, by_plan)


def estimate(
    run: Run, said: Mapping[int, Stage], outlook: Outlook | None, now: float
) -> tuple[dict[int, float | None], float | None, list[str]]:
    """Seconds that each running job still needs, seconds of the whole, and the rules whose jobs are not in
    them, since nothing is known of them. said: by the running jobs' numbers."""
    predictions = outlook.predictions if outlook else []
    predicted = {each.job.name: each.seconds for each in predictions if each.seconds is not None}
    pace = _pace(run, predicted)
    scaled = {name: pace * seconds for name, seconds in predicted.items()}
    running = {
        number: job_seconds(run.jobs[number], stage, scaled.get(run.jobs[number].name), now)
        for number, stage in said.items()
    }
    unknown = [run.jobs[number].rule for number, seconds in running.items() if seconds is None]
    known = [seconds for seconds in running.values() if seconds is not None]
    longest, started = max(known, default=0.0), {job.name for job in run.jobs.values()}
    for rule, count in run.waiting().items():
        each = [
            scaled[prediction.job.name]
            for prediction in predictions
            if prediction.job.rule == rule and prediction.job.name in scaled.keys() - started
        ]
        if each:
            known.append(count * mean(each))
        else:
            unknown.append(rule)
    whole = max(longest, sum(known) / (outlook.card.together if outlook else 1)) if known else None
    return running, whole, sorted(set(unknown))


def _pace(run: Run, predicted: Mapping[str, float]) -> float:
    """Seconds that the jobs took which are done, for each predicted second; 1 where none is."""
    done = [job for job in run.jobs.values() if job.done and predicted.get(job.name)]
    took, planned = sum(job.seconds for job in done), sum(predicted[job.name] for job in done)
    return took / planned if took else 1.0
