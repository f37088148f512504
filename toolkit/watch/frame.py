"""One picture of a run: what is running and how far it is, every rule, and when all of it will be done."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from toolkit.counted import counted
from toolkit.plan.predict import Outlook
from toolkit.progress import clock
from toolkit.terminal import printable
from toolkit.watch.estimate import estimate
from toolkit.watch.run import Job, Run
from toolkit.watch.stage import Stage, stage

COLOURS = {"running": "cyan", "finished": "green", "failed": "red"}
INTERRUPTED = "interrupted, no Snakemake on this machine writes its log any more"
BAR = 60  # columns


def frame(run: Run | None, state: str, outlook: Outlook | None, now: float) -> RenderableType:
    """The picture at `now`, seconds since the epoch; state: the run's, looked up by then."""
    if run is None:
        return Text(f"no run of Snakemake in {printable(Path.cwd())}: `snakemake submit.zip` starts one")
    said = {number: stage(job, now) for number, job in run.jobs.items() if state == "running" and job.running}
    needed, whole, unknown = estimate(run, said, outlook, now)
    return Group(
        _headline(run, state, whole, unknown, now),
        Padding(ProgressBar(max(1, run.counts.total()), run.done, width=BAR)),  # which ends its line
        *([_running(run, said, needed, now)] if said else []),
        *_unfinished(run, state),
        _rules(run, state),
    )


def _headline(run: Run, state: str, whole: float | None, unknown: list[str], now: float) -> Text:
    started = min((job.started for job in run.jobs.values()), default=run.last)
    text = Text(INTERRUPTED if state == "interrupted" else state, COLOURS.get(state, "yellow"))
    text.append(f": {run.done} of {counted(run.counts.total(), 'job')} done", "default")
    if state != "running":
        return text.append(f" in {clock(run.last - started)}", "default")
    text.append(f" after {clock(now - started)}, ", "default")
    text.append("time left unknown" if whole is None else f"about {clock(whole)} left", "bold default")
    return text.append(f", without {', '.join(unknown)}" if unknown and whole is not None else "", "default")


def _running(run: Run, said: dict[int, Stage], needed: dict[int, float | None], now: float) -> Table:
    """How far each running job is."""
    table = _table("running", "for", "done", "of", "loss", "samples/s", "left")
    for number, known in said.items():
        seconds = needed[number]
        table.add_row(
            _name(run.jobs[number]),
            clock(now - run.jobs[number].started),
            *("" if count is None else str(count) for count in (known.done, known.total)),
            "" if known.loss is None else f"{known.loss:.3f}",
            "" if known.samples_per_second is None else f"{known.samples_per_second:.1f}",
            "?" if seconds is None else clock(seconds),
        )
    return table


def _unfinished(run: Run, state: str) -> Iterator[Text]:
    """A line for every job that failed, and in a run that is over for those that it broke off."""
    for job in run.jobs.values():
        if job.failed or (job.running and state != "running"):
            text = f"{_name(job)} {'failed' if job.failed else 'was not finished'}"
            yield Text(
                f"{text}: see {printable(job.log)}" if job.log else text, "red" if job.failed else "yellow"
            )


def _rules(run: Run, state: str) -> Table:
    """Jobs of every rule, and the seconds of those that are done, added up."""
    table = _table("rule", "done", "running", "failed", "waiting", "took")
    for rule, needed in run.counts.items():
        jobs = [job for job in run.jobs.values() if job.rule == rule]
        done = [job for job in jobs if job.done]
        running = sum(job.running for job in jobs) if state == "running" else 0
        failed = sum(job.failed for job in jobs)
        counts = (len(done), running, failed, needed - len(done) - running - failed)
        took = clock(sum(job.seconds for job in done)) if done else ""
        table.add_row(printable(rule), *(str(count or "") for count in counts), took)
    return table


def _name(job: Job) -> str:
    """Rule and what it works on, as `plan` calls both."""
    return printable(job.name or job.rule)


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for column in others:
        table.add_column(column, justify="right")
    return table
