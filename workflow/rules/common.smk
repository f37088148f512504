"""What all rules share: the checked settings, where assets lie, and which modules decide the result of which rule."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from toolkit import assets, scales
from toolkit import config as configuration
from toolkit.errors import UserError

# Rules call `python`: the one that runs Snakemake, also where its environment is not activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

try:
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

# Snakemake compares inputs under 1 MB by content, so a module named as an input re-runs its rule when it is edited and
# not when it is merely checked out anew. Patterns after "but" are left out. The modules directly in toolkit/ (errors,
# files, records) and the command lines decide no result and are not named.
TOOLS = {
    "world": "toolkit/world/*.py but toolkit/world/cli.py toolkit/world/study*.py toolkit/world/zoo*.py",
    "synthesize": "toolkit/data/*.py toolkit/data/operators/*.py but toolkit/data/c*.py",
    "check": "toolkit/data/check.py",
    "convert": "toolkit/data/convert.py",
    "train": "toolkit/mgm/*.py toolkit/train/*.py but toolkit/mgm/answer.py toolkit/mgm/parity.py toolkit/*/cli.py toolkit/train/merge.py",
    "merge": "toolkit/train/merge.py toolkit/train/lora.py",
    "textvqa": "toolkit/mgm/answer.py toolkit/evaluate/generate.py toolkit/evaluate/textvqa*.py",
    "mmbench": "toolkit/mgm/answer.py toolkit/evaluate/generate.py toolkit/evaluate/mmbench*.py",
    "compare": "toolkit/evaluate/compare.py",
    "report": "toolkit/report/*.py but toolkit/report/cli.py",
    "train_script": "toolkit/bundle/train_script.py",
    "validate": "toolkit/bundle/*.py toolkit/bundle/rules/*.yaml but toolkit/bundle/cli.py toolkit/bundle/pack.py",
    "submit": "toolkit/bundle/pack.py",
}


def tool(name: str) -> list[str]:
    """The module files that decide what `name` of TOOLS makes."""
    included, _, excluded = TOOLS[name].partition(" but ")
    paths = {path for pattern in included.split() for path in Path().glob(pattern)}
    return sorted(
        str(path)
        for path in paths
        if not any(path.match(pattern) for pattern in excluded.split())
    )


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
        "zoo": ["toolkit/world/zoo/manifest.json"],
        "url": [],
    }[REGISTRY[wildcards.asset].kind]


def recipe(wildcards) -> str:
    """The Data-Juicer recipe of an experiment."""
    return f"solution/recipes/{settings.experiments[wildcards.exp].recipe}.yaml"


def recipe_models(wildcards) -> list[str]:
    """Roles of the models that an experiment's recipe names, as "{clip}": only these are fetched for it."""
    text = Path(recipe(wildcards)).read_text(encoding="utf-8")
    return [role for role in ("clip", "captioner") if f"{{{role}}}" in text]


def solution_files() -> list[str]:
    """Everything in solution/: it is packed as it is."""
    return sorted(str(path) for path in Path("solution").rglob("*") if path.is_file())
