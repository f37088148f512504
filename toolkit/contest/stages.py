"""The stages of the pipeline in running order: the one table that rules, train.sh, provenance, explain, crate
and rehearsal follow.

Paths are templates below the project's folder. They know {data}, {pretrain}, {finetune} (an experiment's
folders) and {eval} (its results).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from toolkit.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class Stage:
    """name: in paths and findings. command: how its record calls it, None for a stage whose result the
    validator computes again (D1).

    did: what it does, in the past tense. module: where it is computed. record: its record. reads: of its
    inputs those that a stage before wrote; of_lora: further inputs of division open.
    """

    name: str
    command: str | None
    did: str
    module: str
    record: str | None
    reads: Mapping[str, str] = field(default_factory=dict)
    of_lora: Mapping[str, str] = field(default_factory=dict)


TRAINED = (
    Stage(
        "data",
        "synthesize",
        "ran the recipe's operators over the seed rows",
        "toolkit.data.synthesize",
        "{data}/run.json",
    ),
    Stage(
        "convert",
        None,
        "gave every kept caption its question, in LLaVA's format, up to the scale's cap",
        "toolkit.data.convert",
        None,
        reads={"samples": "{data}/processed_data.jsonl"},
    ),
    Stage(
        "pretrain",
        "pretrain",
        "trained projector and mining modules on the captions",
        "toolkit.train.stages",
        "{pretrain}/run.json",
        reads={"samples": "{data}/llava.json"},
    ),
    Stage(
        "finetune",
        "finetune",
        "trained the model on the fixed instructions",
        "toolkit.train.stages",
        "{finetune}/run.json",
        reads={"projector": "{pretrain}/mm_projector.bin"},
    ),
    Stage(
        "merge",
        "merge",
        "folded the adapter into the base model and compared the logits",
        "toolkit.train.merge",
        "{finetune}/merge.json",
        reads={"finetune": "{finetune}/run.json"},
        of_lora={
            name: f"{{finetune}}/{name}" for name in ("adapter_model.safetensors", "non_lora_trainables.bin")
        },
    ),
)
EVALUATED = tuple(
    Stage(
        benchmark.name,
        f"evaluate {benchmark.name}",
        f"answered {benchmark.title} with the merged model and scored the answers",
        type(benchmark).__module__,
        f"{{eval}}/{benchmark.name}/run.json",
        reads={"merge": "{finetune}/merge.json"},
    )
    for benchmark in BENCHMARKS.values()
)
STAGES = {stage.name: stage for stage in (*TRAINED, *EVALUATED)}
RECORDED = {stage.command: stage for stage in STAGES.values() if stage.command}
MODULES = (*dict.fromkeys(stage.module for stage in STAGES.values()), "toolkit.evaluate.run")
