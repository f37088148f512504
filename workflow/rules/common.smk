"""What all rules share: the checked settings, where assets lie, and which modules decide the result of which rule."""

import getpass
import json
import logging
import os
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.persistence.file import FilePersistence
from snakemake.utils import update_config

from toolkit import assets, code, scales
from toolkit import config as configuration
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.benchmarks.base import flag
from toolkit.contest import ruleset
from toolkit.contest.stages import STAGES
from toolkit.data.recipe.plan import files, plan
from toolkit.errors import UserError
from toolkit.files import FULL
from toolkit.search.proposal import read_round
from toolkit.seeds import experiment_of, run_name

# Rules call `python`: the interpreter that runs Snakemake, also where its environment is not activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

# On a full disk Snakemake cannot write its own log: Python would print a traceback for each line of it.
logging.raiseExceptions = False
if shutil.disk_usage(".").free < FULL:
    unwritable = "the disk is full: free some space"
elif not os.access(".", os.W_OK):
    unwritable = "this folder cannot be written: make it writable"
else:
    unwritable = ""


def refuse(*_):
    raise WorkflowError(f"{unwritable} and run the same command again")


def keep_nothing(_):
    """What Snakemake keeps of a dry run serves `--trust-io-cache` alone."""


# What runs jobs locks the folder first, which would end in a traceback. A dry run and the lists need only these folders.
if unwritable:
    FilePersistence.lock = refuse
    FilePersistence.save_iocache = FilePersistence.drop_iocache = keep_nothing
    try:
        os.makedirs(".snakemake/metadata", exist_ok=True)
    except OSError:
        refuse()

# Compiled GPU kernels, kept beside the outputs: in a container everything else of a finished run is gone.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.abspath(".cache/kernels"))
os.environ.setdefault("TRITON_CACHE_DIR", os.path.abspath(".cache/kernels/triton"))

# Snakemake and PyTorch ask for the user's name; an id that a container was started with may have none.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ.update(LOGNAME=str(os.getuid()))

try:
    # Snakemake has read them already, but takes the last of two equal keys and 010 for 8 without a word
    for path in workflow.configfiles:
        configuration.values_in(path)
    update_config(config, configuration.typed(workflow.config_settings.config))
    settings = configuration.load(
        config, source=" + ".join(map(str, workflow.configfiles))
    )
except UserError as error:
    raise WorkflowError(str(error)) from None

REGISTRY = assets.registry()
SCALE = scales.load(settings.scale)
GPU = int(not SCALE.embedded)  # devices that a rule with a model in it needs
CHOSEN = settings.submit.experiment
BASELINE = settings.compare.baseline
SEEDS = settings.seeds
RUNS = {  # name of a training run: its seed; the baseline's first
    run_name(experiment, seed, SEEDS): seed
    for experiment in sorted(settings.experiments, key=lambda name: name != BASELINE)
    for seed in SEEDS
}
RULES = [os.path.relpath(path) for path in ruleset.files(settings.submit.rules)]

# Other models and data may be tried; who wants an entry should not wait for its check to learn it.
if workflow.is_main_process:
    for problem in configuration.foreign(settings):
        logger.warning(f"{configuration.REFUSED}: {problem}")


def tool(*modules: str) -> list[str]:
    """Files of the modules that compute a rule's result, and of all that they import.

    Snakemake compares inputs under 1 MB by content, so a rule runs again, and what follows from it, when a module that decides its
    result is edited, and not when it is merely checked out anew. Command lines only parse: they decide nothing and are not inputs.
    """
    return [os.path.relpath(path) for path in code.closure(*modules)]


def runs(experiment: str) -> list[str]:
    """The training runs of an experiment, one for each seed."""
    return [run for run in RUNS if experiment_of(run) == experiment]


def results(run: str) -> str:
    """Where the answers and scores of a training run lie."""
    return f"output/eval_results/MGM-{SCALE.size}-Finetune-{run}"


def evaluation_flags(*names: str, apart: str = "") -> list[str]:
    """The flags of the command line for the benchmarks' files; `apart`: what the folder `images` is called there."""
    return [
        f"{flag(apart if apart and name == 'images' else name)}={asset_file('evaluation', name)}"
        for benchmark in names
        for name in BENCHMARKS[benchmark].inputs
    ]


def asset(role: str) -> str:
    """The manifest of the asset that plays `role`; it is written last, so everything else in its folder is there."""
    return f"input/{getattr(settings.assets, role)}/manifest.json"


def asset_file(role: str, name: str) -> str:
    """A file or folder of the asset that plays `role`, by its name in the registry."""
    played_by = getattr(settings.assets, role)
    return f"input/{played_by}/{REGISTRY[played_by].files[name]}"


def compared_over_seeds(wildcards) -> str:
    """The comparison that strategies are judged by, which one training seed cannot tell apart from chance."""
    if len(settings.seeds) < 2:
        raise WorkflowError(
            "strategies are compared over training seeds: give several (seeds: [1024, 1, …])"
        )
    return "output/reports/compare.json"


def strategy_flags(run: str, stage: str) -> list[str]:
    """How a training run learns, where its experiment's strategy changes the stage."""
    strategy = settings.experiments[experiment_of(run)].strategy
    changes = strategy and stage in configuration.STRATEGIES[strategy]
    return ["--strategy", strategy] if changes else []


def teacher(wildcards) -> list[str]:
    """The merged model that teaches an experiment, of whatever seed, if one does: its proof, which is written last."""
    name = settings.experiments[experiment_of(wildcards.run)].teacher
    return (
        [f"output/training_dirs/MGM-{SCALE.size}-Finetune-{name}/merge.json"]
        if name
        else []
    )


def prompt_flag(name: str) -> list[str]:
    """How each question of a benchmark ends, where the configuration says it."""
    prompt = settings.benchmarks[name].prompt
    return [] if prompt is None else [f"--prompt={prompt}"]


def asset_sources(wildcards) -> list[str]:
    """Files of the repository that an asset is made of: nothing for one from the network."""
    return {
        "world": tool("toolkit.world.build"),
        "zoo": ["toolkit/world/zoo/zoo.json"],
        "random": tool("toolkit.rehearsal.models"),
    }.get(REGISTRY[wildcards.asset].kind, [])


def recipe(wildcards) -> str:
    """The Data-Juicer recipe of an experiment."""
    name = settings.experiments[wildcards.exp].recipe
    return configuration.recipe_file(settings, name).as_posix()


def source(wildcards) -> Path:
    """The file that says before the run which models and statistics an experiment's recipe may need."""
    return configuration.recipe_source(
        settings, settings.experiments[wildcards.exp].recipe
    )


def recipe_files(wildcards) -> list[str]:
    """Files that the recipe names, such as lists of words, and the recipe itself where a search writes it."""
    written = (
        [recipe(wildcards)] if source(wildcards) != Path(recipe(wildcards)) else []
    )
    return [*written, *files(source(wildcards))]


def recipe_models(wildcards) -> list[str]:
    """Roles of the models that an experiment's recipe names: only these are fetched for it."""
    return configuration.recipe_models(source(wildcards))


def model_flags(wildcards) -> list[str]:
    """The folders of those models, as flags of the command."""
    return [
        f"--model={role}={Path(asset(role)).parent}"
        for role in recipe_models(wildcards)
    ]


def exceptions() -> list[str]:
    """solution/exceptions.yaml, if the contestant wrote one."""
    return [path for path in solution_files() if path == "solution/exceptions.yaml"]


def solution_files() -> list[str]:
    """Everything in solution/: it is packed as it is."""
    return sorted(str(path) for path in Path("solution").rglob("*") if path.is_file())


def no_search(wildcards) -> str:
    """What `snakemake search` says where the configuration has no such section."""
    raise WorkflowError(
        "the configuration has no section search: add --configfile workflow/config/search.yaml"
    )


PARTS = {  # what `snakemake PART` makes of an experiment
    "data": lambda exp: [
        f"output/processed_data/{exp}/{name}"
        for name in ("llava.json", "contamination.json")
    ],
    "train": lambda exp: [
        f"output/training_dirs/MGM-{SCALE.size}-Finetune-{run}/merge.json"
        for run in runs(exp)
    ],
    "evaluate": lambda exp: [
        f"{results(run)}/{benchmark}/score.json"
        for run in runs(exp)
        for benchmark in settings.benchmarks
    ],
}
