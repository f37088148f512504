"""Data-Juicer under control: nothing installed or fetched, failing operators fail, and for every row the operator that removed it.

The recipe runs in Data-Juicer's own configuration, loader and executor; only the loop over the operators is replaced (`Funnel.process`),
because the stock one throws away the statistics of the rows that a filter drops. One thing differs on purpose: statistics and hashes do not
outlive a mapper. Stock operators skip what is "computed already", so a similarity filter after recaptioning would judge the old caption.
"""

import inspect
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import UserError
from toolkit.files import write_jsonl

ENVIRONMENT = {
    **{name: "1" for name in ("UV_OFFLINE", "PIP_NO_INDEX", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")},
    "TQDM_MININTERVAL": "5",  # seconds between two updates of a progress bar: logs stay readable
}


@contextmanager
def offline() -> Iterator[None]:
    """Import Data-Juicer with the project's operators; while this lasts, installing a package or using the network raises OSError."""
    os.environ.update(ENVIRONMENT)  # before the first import: the libraries read them once
    from data_juicer.utils.lazy_loader import LazyLoader
    from loguru import logger

    import toolkit.data.operators  # noqa: F401  (registers them)

    logger.remove()  # Data-Juicer's own log of some forty lines a run; the funnel below says what matters
    logger.add(sys.stderr, level="ERROR")

    def refuse_install(package: str, *_: Any) -> None:
        raise OSError(f"the Python package {package} is not installed, and a recipe installs nothing")

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse_address(address)
        super(socket.socket, self).connect(address)

    def refuse_address(address: Any, *_: Any, **__: Any) -> None:
        raise OSError(f"a recipe fetches nothing, but {address} was asked for: name a local file or model")

    install, resolve = LazyLoader.__dict__["_install_package"], socket.getaddrinfo
    LazyLoader._install_package = staticmethod(refuse_install)
    socket.socket.connect, socket.getaddrinfo = connect, refuse_address
    try:
        yield
    finally:
        LazyLoader._install_package, socket.getaddrinfo = install, resolve
        del socket.socket.connect  # the inherited method again


@dataclass
class Outcome:
    """`rows` that are left; for the id of every other row `{operator, step, reason, …}`; `{operator, in, out}` a step; "cpu" or "cuda"."""

    rows: list[dict[str, Any]]
    removed: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    device: str


def run(process: list[dict[str, dict]], rows: list[dict[str, Any]], processes: int) -> Outcome:
    """Run the operators of `process` over `rows` (`id`, `text`, absolute `images`; ids unique), inside `offline()`.

    A failing operator is a UserError that names it; its traceback goes to stderr.
    """
    from data_juicer.config import init_configs
    from data_juicer.core.executor import DefaultExecutor

    with tempfile.TemporaryDirectory(prefix="data-juicer-") as name:
        work = Path(name)
        write_jsonl(work / "rows.jsonl", rows)
        settings = {
            "project_name": "synthesize",
            "job_id": "synthesize",
            "dataset_path": str(work / "rows.jsonl"),
            "export_path": str(work / "out" / "rows.jsonl"),
            "work_dir": str(work),
            "ds_cache_dir": str(work / "cache"),
            "use_cache": False,
            "np": processes,
            "auto_op_parallelism": False,
            "skip_op_error": False,
            "open_tracer": False,
            "open_monitor": False,
            "process": process,
        }
        (work / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        try:
            executor = DefaultExecutor(init_configs(["--config", str(work / "recipe.yaml")], load_configs_only=True))
        except SystemExit:  # its parser prints the reason and leaves
            raise UserError("Data-Juicer refuses the recipe for the reason printed above: mend the recipe") from None
        funnel = funnel_of(executor.dataset_builder.load_dataset(num_proc=processes))
        left = executor.run(dataset=funnel, skip_export=True)
        kept = [{"id": row["id"], "text": row["text"], "images": list(row["images"])} for row in left]
    return Outcome(kept, funnel.removed, funnel.steps, funnel.device)


def funnel_of(dataset: Any) -> Any:
    """`dataset` as a Data-Juicer dataset that notes, operator by operator, who leaves and why (`removed`, `steps`)."""
    import torch
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops import UNFORKABLE, Filter, Mapper
    from data_juicer.utils.constant import Fields
    from data_juicer.utils.process_utils import setup_mp

    class Funnel(NestedDataset):
        def process(self, operators: list, **_: Any) -> NestedDataset:
            self.removed, self.steps = {}, []
            self.device = "cuda" if any(operator.use_cuda() for operator in operators) else "cpu"
            dataset = NestedDataset(self)
            for number, operator in enumerate(operators, start=1):
                if not len(dataset):
                    break
                start = time.monotonic()
                setup_mp(["forkserver", "spawn"] if operator.use_cuda() or operator._name in UNFORKABLE.modules else None)
                if operator.use_cuda():  # one process a GPU: each loads the model
                    operator.num_proc = min(operator.num_proc, torch.cuda.device_count())
                rows = len(dataset)
                try:
                    dataset = self._step(number, operator, dataset)
                except Exception as error:
                    traceback.print_exc(file=sys.stderr)
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    raise UserError(f"step {number} of the recipe, operator {operator._name}, failed: {reason}") from error
                self.steps.append({"operator": operator._name, "in": rows, "out": len(dataset)})
                seconds = time.monotonic() - start
                print(f"step {number}, {operator._name}: {rows} rows, {len(dataset)} left, {seconds:.0f} s", file=sys.stderr, flush=True)
            return dataset

        def _step(self, number: int, operator: Any, dataset: NestedDataset) -> NestedDataset:
            if isinstance(operator, Filter):
                scored = operator.run(dataset, reduce=False)  # statistics only
                kept = scored.filter(
                    operator.process, num_proc=operator.runtime_np(), batch_size=operator.batch_size, desc=f"{operator._name}_process"
                )
            else:
                scored, kept = dataset, operator.run(dataset)
            left = set(kept["id"])
            for position, row_id in enumerate(scored["id"]):
                if row_id not in left:
                    before, after = dataset[position].get(Fields.stats, {}), scored[position].get(Fields.stats, {})
                    found = {name: value for name, value in after.items() if name not in before}
                    if not found and isinstance(operator, Filter):  # it reused what an earlier filter had computed
                        found = after
                    self.removed[row_id] = explain(number, operator, found) | {"text": dataset[position]["text"]}
            if isinstance(operator, Mapper):
                kept = kept.remove_columns([name for name in kept.column_names if name.startswith("__dj__") and name != Fields.meta])
            return kept

    return Funnel(dataset)


def explain(number: int, operator: Any, statistics: dict[str, Any]) -> dict[str, Any]:
    """Why a row left at this step: the statistic where the operator has one, and the limits it is held to."""
    given = operator._op_cfg[operator._name] or {}
    limits = {
        name: given.get(name, parameter.default)
        for name, parameter in inspect.signature(type(operator).__init__).parameters.items()
        if name.startswith(("min", "max"))
    }
    limits = {name: value for name, value in limits.items() if value not in (None, sys.maxsize)}
    found = ", ".join(f"{name} {value}" for name, value in statistics.items())
    bounds = ", ".join(f"{name} {value}" for name, value in limits.items())
    why = f"{found}; kept are {bounds}" if found and bounds else found or "removed as a duplicate or by selection"
    return {"operator": operator._name, "step": number, "reason": why, "statistics": statistics, "limits": limits}
