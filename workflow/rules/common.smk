"""What all rules share: the checked settings, where assets lie, and which modules decide the result of which rule."""

import getpass
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from toolkit import assets, scales
from toolkit import config as configuration
from toolkit.data.plan import files, plan
from toolkit.errors import UserError

# Rules call `python`: the one that runs Snakemake, also where its environment is not activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

# Snakemake and PyTorch ask for the user's name; an id that a container was started with may have none.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ.update(LOGNAME=str(os.getuid()))

try:
    # Snakemake has read them already, but takes the last of two equal keys and 010 for 8 without a word
    for path in workflow.configfiles:
        configuration.values_in(path)
    settings = configuration.load(
        config, source=" + ".join(map(str, workflow.configfiles))
    )
except UserError as error:
    raise WorkflowError(str(error)) from None

REGISTRY = assets.registry()
SCALE = scales.load(settings.scale)
GPU = int(settings.scale != "tiny")  # devices that a rule with a model in it needs
CHOSEN = settings.submit.experiment
BASELINE = settings.compare.baseline
RESULTS = [  # the baseline first
    f"output/eval_results/MGM-{SCALE.size}-Finetune-{name}"
    for name in sorted(settings.experiments, key=lambda name: name != BASELINE)
]

# Snakemake compares inputs under 1 MB by content, so a module named as an input re-runs its rule, and what follows from it,
# when it is edited and not when it is merely checked out anew. File names after "but" are left out: command lines and what
# decides no result of the rule. So are the modules directly in toolkit/ (errors, files, progress, records) but for images.py.
TOOLS = {
    "world": "toolkit/world/*.py but cli.py study.py",
    "score": "toolkit/images.py toolkit/data/*.py toolkit/data/operators/*.py but cli.py check.py convert.py plan.py",
    "check": "toolkit/data/check.py",
    "convert": "toolkit/data/convert.py",
    "analyze": "toolkit/images.py toolkit/data/analysis/* toolkit/data/samples.py",
    "train": "toolkit/images.py toolkit/mgm/*.py toolkit/train/*.py toolkit/data/samples.py but cli.py answer.py generate.py parity.py merge.py monitor.py",
    "merge": "toolkit/train/merge.py",
    "eval": "toolkit/mgm/answer.py toolkit/mgm/generate.py toolkit/evaluate/generate.py toolkit/evaluate/questions.py toolkit/evaluate/control.py",
    "textvqa": "toolkit/evaluate/textvqa.py",
    "mmbench": "toolkit/evaluate/mmbench.py toolkit/evaluate/tables.py toolkit/evaluate/upload.py",
    "contamination": "toolkit/images.py toolkit/evaluate/*.py but cli.py compare.py control.py generate.py upload.py",
    "compare": "toolkit/evaluate/compare.py",
    "report": "toolkit/report/*.py toolkit/bundle/experiment.py toolkit/bundle/exceptions.py toolkit/bundle/findings.py but cli.py",
    "train_script": "toolkit/bundle/train_script.py toolkit/bundle/experiment.py",
    "sources": "toolkit/bundle/sources.py toolkit/bundle/sbom.py toolkit/bundle/ruleset.py toolkit/bundle/__init__.py",
    "crate": "toolkit/bundle/crate.py toolkit/bundle/entry.py toolkit/bundle/experiment.py toolkit/bundle/ruleset.py toolkit/bundle/rules/*.yaml",
    "validate": "toolkit/bundle/*.py toolkit/bundle/rules/*.yaml toolkit/config/records.py but cli.py pack.py sources.py explain.py rebuild.py",
    "submit": "toolkit/bundle/pack.py",
}


def tool(*names: str) -> list[str]:
    """The module files that `names` of TOOLS stand for."""
    found = set()
    for name in names:
        patterns, _, others = TOOLS[name].partition(" but ")
        found |= {
            path
            for pattern in patterns.split()
            for path in Path().glob(pattern)
            if path.name not in others.split()
        }
    return sorted(map(str, found))


def asset(role: str) -> str:
    """The manifest of the asset that plays `role`; it is written last, so everything else in its folder is there."""
    return f"input/{getattr(settings.assets, role)}/manifest.json"


def asset_file(role: str, name: str) -> str:
    """A file or folder of the asset that plays `role`, by its name in the registry."""
    played_by = getattr(settings.assets, role)
    return f"input/{played_by}/{REGISTRY[played_by].files[name]}"


def asset_sources(wildcards) -> list[str]:
    """Files of the repository that an asset is made of: nothing for one from the network."""
    return {
        "world": tool("world"),
        "zoo": ["toolkit/world/zoo/zoo.json"],
        "url": [],
    }[REGISTRY[wildcards.asset].kind]


def recipe(wildcards) -> str:
    """The Data-Juicer recipe of an experiment."""
    return f"solution/recipes/{settings.experiments[wildcards.exp].recipe}.yaml"


def recipe_files(wildcards) -> list[str]:
    """Files that the recipe names, such as lists of words."""
    return files(Path(recipe(wildcards)))


def recipe_models(wildcards) -> list[str]:
    """Roles of the models that an experiment's recipe names, as "{clip}" in quotes: only these are fetched for it."""
    named = set(
        re.findall(
            r"""["']\{(\w+)\}["']""",
            Path(recipe(wildcards)).read_text(encoding="utf-8"),
        )
    )
    return [role for role, _ in settings.assets if role in named]


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
