"""Data-Juicer's operators under control: nothing installed or fetched, failing operators fail, each computes
on its own.

`compute` runs operators over some rows and gives what they find as JSON texts: a filter's statistics, a
deduplicator's hashes, the rows that a mapper makes of each. One thing differs from stock Data-Juicer on
purpose: an operator never reuses what another computed. Stock operators skip a statistic that "is there
already", so a similarity filter after recaptioning would judge the old caption, and a second repetition
filter would judge by the first filter's window.
"""

import gc
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data import network
from toolkit.data.recipe import Step
from toolkit.errors import UserError

ENVIRONMENT = {
    "UV_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of weights that are read from a folder within a second
    "TQDM_MININTERVAL": "5",  # seconds between two updates of a progress bar: logs stay readable
}


@contextmanager
def offline() -> Iterator[None]:
    """Import Data-Juicer with the project's operators; while this lasts, installing a package raises
    UserError, a connection OSError."""
    os.environ.update(ENVIRONMENT)  # before the first import: the libraries read them once
    from data_juicer.utils.lazy_loader import LazyLoader
    from loguru import logger

    import toolkit.data.operators  # noqa: F401  (registers those that stand for Data-Juicer's)

    # what was imported stays, nor are rows by the hundred thousand garbage: a third of the time was search
    if not gc.get_freeze_count():
        gc.freeze()
        gc.set_threshold(100_000, 20, 50)
    logger.remove()  # Data-Juicer's own log of some forty lines a run; the funnel below says what matters
    logger.add(sys.stderr, level="ERROR")

    def refuse_install(package: str, *_: Any) -> None:
        raise UserError(
            f"it needs the Python package {package}, which is not installed: install it, or take the step out"
        )

    install = LazyLoader.__dict__["_install_package"]
    LazyLoader._install_package = staticmethod(refuse_install)
    try:
        with network.refused():
            yield
    finally:
        LazyLoader._install_package = install


@dataclass(frozen=True)
class Job:
    """Operators to run over the same rows: (step, name, arguments as JSON) of each. Small, so that any
    process can make them."""

    operators: tuple[tuple[int, str, str], ...]

    def instances(self) -> list[Any]:
        return [_operator(name, arguments) for _, name, arguments in self.operators]


def job(steps: Sequence[Step]) -> Job:
    """The job of `steps`, with their limits as they are written."""
    return Job(
        tuple((step.number, step.operator, json.dumps(step.arguments, sort_keys=True)) for step in steps)
    )


def operator(step: Step, **limits: Any) -> Any:
    """The Data-Juicer operator of a step, with `limits` in place of its own; made once a process."""
    return _operator(step.operator, json.dumps(step.arguments | limits, sort_keys=True))


@cache
def _operator(name: str, arguments: str) -> Any:
    from toolkit.data.operators import registered

    return registered(name)(**json.loads(arguments), skip_op_error=False, auto_op_parallelism=False)


Content = tuple[str, str, dict | None]  # of a row: text, absolute image path, meta


def compute(
    job: Job, rows: Sequence[Content], places_of_operators: Sequence[Sequence[int]], rank: int | None = None
) -> list[list[str]]:
    """For each operator of `job` what it computes of its rows, as JSON texts.

    `places_of_operators`: for each operator, places in `rows` of those that it needs. `rank`: the GPU. An
    image is decoded once for all operators. UserError for a failing operator, as of `blamed`.
    """
    from data_juicer.ops import Deduplicator, Filter

    contexts: list[dict] = [{} for _ in rows]
    results = []
    for (step, name, arguments), places in zip(job.operators, places_of_operators, strict=True):
        with blamed(step, name):
            instance = _operator(name, arguments)
            run: Callable[[Any, Sequence[Content], list[dict], int | None], Sequence[Any]]
            if isinstance(instance, Filter):
                run = _filter
            else:
                run = _hash if isinstance(instance, Deduplicator) else _map
            contents, own_contexts = [rows[place] for place in places], [contexts[place] for place in places]
            with _for_inference(instance):
                values = run(instance, contents, own_contexts, rank) if places else []
            results.append(
                [_json(value, rows[place][1]) for place, value in zip(places, values, strict=True)]
            )
    return results


@contextmanager
def blamed(step: int, name: str) -> Iterator[None]:
    """Whatever an operator raises as a UserError that names it; the traceback goes to stderr."""
    try:
        yield
    except UserError as error:
        raise UserError(f"step {step} of the recipe, operator {name}: {error}") from None
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"step {step} of the recipe, operator {name}, failed: {reason}") from None


def _for_inference(instance: Any) -> AbstractContextManager:
    """Where an operator has a model, what toolkit/data/engine/models.py asks of it."""
    if instance._accelerator != "cuda":
        return nullcontext()
    from toolkit.data.engine.models import inference  # torch and transformers

    return inference()


def _json(value: Any, image: str) -> str:
    """ValueError, which names the row's image, for what no JSON file holds: NaN, infinity, half a surrogate
    pair."""
    try:
        text = _ENCODER.encode(value)
        text.encode()
    except ValueError as error:
        raise ValueError(f"{error} (the row of {Path(image).name})") from None
    return text


def _samples(rows: Sequence[Content], tags: bool = False) -> dict[str, list]:
    """Rows as Data-Juicer's batch. `id` is the row's place, so that a mapper which makes several rows of one
    says of which."""
    from data_juicer.utils.constant import Fields

    samples: dict[str, list[Any]] = {
        "id": list(range(len(rows))),
        "text": [text for text, _, _ in rows],
        "images": [[image] for _, image, _ in rows],
    }
    return samples | (
        {Fields.meta: [dict(meta or {}) for *_, meta in rows]}
        if tags or any(meta for *_, meta in rows)
        else {}
    )


def _batched(
    instance: Any, base: type, batched: str, single: str, **offered: Any
) -> Callable[[dict[str, list]], dict[str, list]]:
    """An operator's function over a batch, with those of `offered` that it takes. Of one that works row by
    row it is Data-Juicer's loop over its single one, though the operator may have a batched one for other
    uses.
    """
    function = getattr(type(instance) if instance.is_batched_op() else base, batched)
    overridden = function is not getattr(base, batched)
    accepted = inspect.signature(function if overridden else getattr(instance, single)).parameters
    return partial(function, instance, **{name: value for name, value in offered.items() if name in accepted})


def _filter(instance: Any, rows: Sequence[Content], contexts: list[dict], rank: int | None) -> list[dict]:
    from data_juicer.ops import Filter
    from data_juicer.utils.constant import Fields

    samples = _samples(rows) | {Fields.stats: [{} for _ in rows], Fields.context: contexts}
    return _batched(
        instance, Filter, "compute_stats_batched", "compute_stats_single", context=True, rank=rank
    )(samples)[Fields.stats]


def _hash(instance: Any, rows: Sequence[Content], contexts: list[dict], rank: int | None) -> list[dict]:
    from data_juicer.utils.constant import Fields

    method = type(instance).compute_hash  # the instance's own is wrapped for data sets
    keywords = {"context": True} if "context" in inspect.signature(method).parameters else {}
    hashes = []
    for (text, image, _), context in zip(rows, contexts, strict=True):
        sample = {"text": text, "images": [image], Fields.context: context}
        hashed = method(instance, dict(sample), **keywords)
        hashes.append({name: value for name, value in hashed.items() if name not in sample})
    return hashes


def _map(instance: Any, rows: Sequence[Content], contexts: list[dict], rank: int | None) -> list[list]:
    from data_juicer.ops import TAGGING_OPS, Mapper
    from data_juicer.utils.constant import Fields

    tags = instance._name in TAGGING_OPS.modules  # which leave text and image alone
    # what is kept by the image alone must not carry one row's tags to another
    if getattr(instance, "_reads", None) == "image":
        rows = [(text, image, None) for text, image, _ in rows]
    samples = _samples(rows, tags)
    samples = _batched(instance, Mapper, "process_batched", "process_single", rank=rank)(samples)
    if len(samples["id"]) != len(samples["text"]):
        raise ValueError("it makes several rows of one without repeating their id")
    new_rows: list[list] = [[] for _ in rows]
    metas = samples.get(Fields.meta, [None] * len(samples["id"]))
    for place, text, images, meta in zip(
        samples["id"], samples["text"], samples["images"], metas, strict=True
    ):
        if len(images) != 1:
            raise ValueError(f"it makes a row with {len(images)} images")
        _, old_image, old_meta = rows[place]
        new_tags = {name: tag for name, tag in (meta or {}).items() if tag != (old_meta or {}).get(name)}
        new_rows[place].append(
            [None if tags else text, None if images[0] == old_image else images[0], new_tags or None]
        )
    return new_rows


def _plain(value: Any) -> Any:
    """NumPy's values as those that JSON has types for."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a statistic")


# `json.dumps` would make an encoder for each value
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)
