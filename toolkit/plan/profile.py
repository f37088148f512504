"""A Snakemake profile for Slurm (docs/container.md): what each rule asks the cluster for, by the plan."""

import math
from pathlib import Path
from typing import Any

import yaml

from toolkit.files import write_text
from toolkit.plan.predict import TRAINING, Outlook

MEGA = 1e6
SPARE = 2  # a job that takes longer than it asked for is killed, so it asks for twice the plan's most
SHORTEST = 10  # minutes
DOWNLOAD = 24 * 60  # minutes: a line's speed is not planned
HOST = 8000  # MB of a rule of which the plan knows no memory; beside a GPU it knows rows and weights alone
MARGIN = 1.25  # of memory that was measured or computed
STEP = 1000  # MB of the Snakemake that runs the rule on its node
PROCESSORS = 8  # for each GPU: what feeds it, and what decodes and resizes its images

HEAD = """\
# Slurm: snakemake submit.zip --workflow-profile {folder} --configfile {config}
# Written by `python -m toolkit plan --config {config} --card {card} --gpus {gpus}{nodes} --profile {folder}`.
# A partition or an account: add slurm_partition and slurm_account to default-resources (docs/container.md).
"""
SETTINGS = {
    "executor": "slurm",
    "jobs": 20,
    "latency-wait": 60,  # seconds until a file of another node shows on a shared file system
    "rerun-incomplete": True,
    "retries": 3,  # after a node's failure or scancel; training and answers continue where they were
    "printshellcmds": True,
    "show-failed-logs": True,
}


def resources(outlook: Outlook, nodes: int = 1) -> dict[str, dict[str, Any]]:
    """By rule: minutes, MB of host memory on each node, and for trainings what `_training` says; the largest
    of its jobs."""
    asked: dict[str, dict[str, Any]] = {}
    for each in outlook.predictions:
        most = None if each.seconds is None else each.seconds * (1 + each.error) * SPARE / 60
        minutes = DOWNLOAD if most is None else max(SHORTEST, math.ceil(most))
        least = HOST if outlook.card.memory or not each.host else 0
        memory = max(least, STEP + math.ceil(each.host * MARGIN / MEGA))
        before = asked.get(each.job.rule, {"runtime": 0, "mem_mb": 0})
        rule = {"runtime": max(minutes, before["runtime"]), "mem_mb": max(memory, before["mem_mb"])}
        if each.job.rule in TRAINING:
            rule |= _training(outlook, nodes)
        asked[each.job.rule] = rule
    return asked


def _training(outlook: Outlook, nodes: int) -> dict[str, Any]:
    """GPUs of a training on all its nodes together, where they are not the rule's own number, and nodes."""
    asked: dict[str, Any] = {}
    per_node = outlook.gpus // nodes if outlook.card.memory else 0
    if per_node * nodes > 1:
        asked["gpu"] = per_node * nodes
    if nodes > 1:
        # mpi: the plugin leaves srun to the rule, which runs on the first node, and wants two tasks a node
        asked |= {"nodes": nodes, "mpi": "srun", "tasks_per_node": max(2, per_node)}
        if per_node:  # otherwise Slurm shares the GPUs out as it likes, 7 and 1 of 8
            asked["slurm_extra"] = f"--gpus-per-node={per_node}"
    return asked


def threads(outlook: Outlook, nodes: int = 1) -> dict[str, int]:
    """By rule: processors of a task, for rules that read images beside a GPU. A training on one node is one
    task, on several it has a task for each GPU."""
    if not outlook.card.memory:
        return {}
    gpus = outlook.gpus if nodes == 1 else 1  # of a training's task
    return {
        rule: PROCESSORS * (gpus if rule in TRAINING else 1)
        for rule in dict.fromkeys(each.job.rule for each in outlook.predictions)
        if rule in TRAINING or rule.startswith("eval_")
    }


def write(outlook: Outlook, config: Path, folder: Path, nodes: int) -> None:
    """Write the profile `folder`/config.yaml for trainings on `nodes` nodes each."""
    values: dict[str, Any] = SETTINGS | {
        "default-resources": [f"runtime={SHORTEST}", f"mem_mb={HOST}"],
        "set-resources": resources(outlook, nodes),
    }
    if asked := threads(outlook, nodes):
        values["set-threads"] = asked
    head = HEAD.format(
        folder=folder.as_posix(),
        config=config.as_posix(),
        card=outlook.card.name,
        gpus=outlook.gpus // nodes,
        nodes=f" --nodes {nodes}" if nodes > 1 else "",
    )
    write_text(folder / "config.yaml", head + yaml.safe_dump(values, sort_keys=False))
