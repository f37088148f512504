"""What can be configured: the one place of defaults, units and descriptions. Keys are named after the rules
that read them.

`python -m toolkit config write` writes workflow/config/tiny.yaml (every key with its default) and
workflow/schemas/ from these models; `python -m toolkit config check FILE` lists every problem of a file.
Cores, memory and GPUs belong to profiles.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from toolkit import assets, scales
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.contest import ruleset
from toolkit.errors import UserError
from toolkit.files import read_yaml
from toolkit.parse import Malformed, yaml_value
from toolkit.seeds import LIMIT, SUFFIX

RECIPES = Path("solution/recipes")
RULESETS = Path("toolkit/contest/rules")
SEARCHED = Path("output/search")
# Recipes that a search writes: the best that it finds, and as many rows drawn at random.
WRITTEN = ("winner", "control")
# Learning strategies (toolkit/train/strategies) and the stages of training that each changes.
STRATEGIES = {
    "curriculum": ("pretrain", "finetune"),
    "distillation": ("finetune",),
    "hard-negatives": ("pretrain",),
    "importance": ("pretrain", "finetune"),
    "neftune": ("finetune",),
    "progressive": ("finetune",),
    "resolution": ("pretrain", "finetune"),
}
RULES_READ = ("seed", "instruction", "evaluation", "llm", "clip", "convnext")  # the other roles are recipes'

# Stands in folder names of the kit's tree, so: lower case, no blanks, no dots, nothing that a shell would
# read; no longer than file systems take with what is put before and behind it.
LONGEST_NAME = 64
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=LONGEST_NAME)]


def typed(value: Any) -> Any:
    """A value of Snakemake's `--config`, whose numbers, truth values and nulls in lists and sections are
    texts there: `seeds=[1024,7]`, `finetune={lora_rank: 8}`."""
    if isinstance(value, Mapping):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    try:
        plain = yaml_value(value) if isinstance(value, str) and value else value
    except Malformed:
        return value
    return value if isinstance(plain, str | list | dict) else plain


def _below_limit(value: int) -> int:
    if not 0 <= value < LIMIT:  # Field(lt=) would name it rounded to 16 digits
        raise PydanticCustomError("seed", "an integer from 0 to below 2^63")
    return value


Seed = Annotated[
    int,
    AfterValidator(_below_limit),
    WithJsonSchema({"type": "integer", "minimum": 0, "exclusiveMaximum": LIMIT}),
]


class Section(BaseModel):
    """Unknown keys are errors and "16" is not a number: nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Assets(Section):
    """Which asset plays which role; names are those of toolkit/assets/registry.yaml."""

    seed: str = Field("world-seed", description="images and raw captions that an experiment starts from")
    instruction: str = Field("world-instruction", description="fixed data of the finetuning")
    evaluation: str = Field("world-evaluation", description="TextVQA and MMBench")
    llm: str = Field("world-gemma", description="language model")
    clip: str = Field("world-clip", description="vision tower, also scores image-text similarity in recipes")
    convnext: str = Field("world-convnext", description="high-resolution vision tower")
    captioner: str = Field("world-captioner", description="BLIP-2 model that rewrites captions in recipes")
    itm: str = Field("world-itm", description="BLIP model that tells whether a caption fits, for recipes")
    grounding: str = Field(
        "world-grounding", description="OWL-ViT model that finds what a caption names, for recipes"
    )
    aesthetics: str = Field("world-aesthetics", description="aesthetics predictor, version 2, for recipes")
    perplexity: str = Field(
        "world-perplexity", description="causal language model that captions surprise, for recipes"
    )
    sentences: str = Field(
        "world-sentences", description="BERT that tells how alike two captions are, for recipes"
    )
    watermark: str = Field(
        "world-watermark", description="image classifier, second class: watermark; for recipes"
    )
    nsfw: str = Field("world-nsfw", description="image classifier, second class: unsafe; for recipes")
    ocr: str = Field(
        "pp-ocrv6-small", description="finds and reads lines of text, for recipes; needs EXTRAS=ocr"
    )
    concreteness: str = Field(
        "icc", description="RoBERTa that tells how concrete a caption is, for recipes; no stand-in"
    )
    mgm: str = Field(
        "own-mgm", description="MGM that you trained, whose losses choose rows, for recipes; adopt it"
    )


class Experiment(Section):
    """One way to make training data from the seed, and to learn from them."""

    recipe: Name = Field(
        description="solution/recipes/{recipe}.yaml, a Data-Juicer recipe; with a search also winner, control"
    )
    strategy: Name | None = Field(
        None, description="how it learns, in the division open alone; null: the plain training"
    )
    teacher: Name | None = Field(
        None, description="experiment whose model of the first seed teaches (strategy: distillation)"
    )


class Synthesize(Section):
    """Scores and selection of every experiment's data."""

    executor: Literal["local", "ray"] = Field(
        "local", description="processes of this machine, or a Ray cluster (RAY_ADDRESS)"
    )


class Pretrain(Section):
    """First training stage, on the experiment's captions."""

    base: Literal["full", "fp8"] = Field(
        "full",
        description="the frozen language model: full, or fp8 for speed on Ada and Hopper GPUs (open only)",
    )


class Finetune(Section):
    """Second training stage, on the fixed instruction data."""

    division: Literal["open", "closed"] = Field(
        "open", description="closed: the kit's full finetuning; open: LoRA"
    )
    base: Literal["full", "nf4", "fp8"] = Field(
        "full",
        description="LoRA's frozen base: full, nf4 for cards of 12 GB (QLoRA), or fp8 for speed (open only)",
    )
    lora_rank: int = Field(16, ge=1, description="rank of the update of each decoder linear (open only)")
    lora_alpha: int = Field(32, ge=1, description="the update is scaled by alpha / rank (open only)")
    lora_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the adapter's inputs dropped in training (open only)"
    )


class Asked(Section):
    """How a benchmark is put to the model."""

    batch_size: int = Field(16, ge=1, description="questions answered at once, if they fit")
    prompt: str | None = Field(
        None,
        min_length=1,
        description="ends each question of a benchmark whose files do not (mmbench); null: the official",
    )


class Compare(Section):
    """Experiments side by side: paired bootstrap over the questions."""

    baseline: Name = Field("baseline", description="experiment that the others are compared with")
    resamples: int = Field(10000, ge=100, description="bootstrap resamples of the question set")
    seed: Seed = Field(1024, description="of the resampling")


class Search(Section):
    """The search for a recipe. A trial trains both stages on a recipe's data and answers the development
    questions."""

    development: str = Field(
        description="asset of questions to choose by: of other contents than those of training and evaluation"
    )
    space: str = Field(
        "solution/search/space.yaml", description="the recipes to choose from, as a file of the project"
    )
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="who proposes: tree-structured Parzen estimators, or chance"
    )
    seed: Seed = Field(0, description="of proposals and of trials' trainings; the finals count on from it")
    rounds: int = Field(10, ge=1, description="of proposals, each made from the results of those before it")
    trials: int = Field(4, ge=1, description="proposals a round, trained side by side")
    rows: int = Field(1500, ge=8, description="training rows of a trial whose recipe fills the scale's cap")
    instructions: int = Field(1000, ge=16, description="rows of the finetuning of a trial, at most")
    finalists: int = Field(3, ge=1, description="best recipes, trained again at full size in a last round")
    repeats: int = Field(2, ge=1, description="trainings of each of them, with seeds of their own")


class Report(Section):
    """Report over all experiments."""

    title: str = Field(
        "Better Synth: raw captions against synthesized captions", min_length=1, description="its first line"
    )


class Submit(Section):
    """What submit.zip holds."""

    experiment: Name = Field("synth", description="experiment that is handed in")
    rules: str = Field(
        "embedded", description="contest rules to validate against: toolkit/contest/rules/{rules}.yaml"
    )


class Config(Section):
    """What to run. Every key has a default: {} is the tiny scale on the embedded world."""

    scale: str = Field(
        "tiny", description="row of the frozen table toolkit/scales: model size, sample cap, training numbers"
    )
    seeds: list[Seed] = Field(
        [1024],
        min_length=1,
        description="of weights, data order and dropout in both stages; each trains every experiment once",
    )
    assets: Assets = Assets()
    experiments: dict[Name, Experiment] = Field(
        {"baseline": Experiment(recipe="baseline"), "synth": Experiment(recipe="recaption")},
        min_length=1,
        description="name: how its data is made; the baseline is an experiment like any other",
    )
    synthesize: Synthesize = Synthesize()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    benchmarks: dict[str, Asked] = Field(
        {name: Asked() for name in CONTEST},
        description="which are run, and how they are asked; the contest's, and others of toolkit/benchmarks",
    )
    compare: Compare = Compare()
    report: Report = Report()
    submit: Submit = Submit()
    search: Search | None = Field(None, description="how a recipe is searched for; null: there is no search")


def as_flag(section: type[Section], key: str) -> dict[str, Any]:
    """Default and help of a setting, for the flag of a command line that stands for it."""
    setting = section.model_fields[key]
    return {"default": setting.default, "help": f"{setting.description} ({setting.default})"}


# by names of the user's, and what may be null
MAPPINGS: dict[int | str, type[Section]] = {
    "experiments": Experiment,
    "benchmarks": Asked,
    "search": Search,
}


def load(values: Mapping[str, Any], source: str) -> Config:
    """The checked configuration of `values`, read from `source`; UserError lists every problem, a line
    each."""
    try:
        config = Config.model_validate(dict(values))
        problems = references(config)
    except ValidationError as error:
        problems = [sentence(details) for details in error.errors(include_url=False)]
    if problems:
        raise UserError("\n".join([f"{source} cannot be used:", *(f"  - {problem}" for problem in problems)]))
    return config


def read(path: Path | str) -> Config:
    """The checked configuration in a YAML file."""
    return load(values_in(path), str(path))


def values_in(path: Path | str) -> dict[str, Any]:
    """Keys and values of a YAML file as they are written; UserError where YAML would lose or reinterpret one.

    An empty file is refused as Snakemake does it, which reads the file before the Snakefile can.
    """
    values = read_yaml(path)
    if values is None:
        raise UserError(f"{path} is empty: write {{}} for all defaults")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, not {values!r}")
    return values


def references(config: Config) -> list[str]:
    """Problems with names that stand for something elsewhere: scale, assets, recipes, experiments, rules."""
    experiments = sorted(config.experiments)
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml")) + list(WRITTEN if config.search else ())
    mentions = [
        ("scale", config.scale, "a scale", scales.names()),
        *(
            (f"assets.{role}", name, f"an asset of {assets.NAME} that serves as {role}", serving(role))
            for role, name in config.assets
        ),
        *(
            (f"experiments.{name}.recipe", experiment.recipe, f"a recipe in {RECIPES}", recipes)
            for name, experiment in config.experiments.items()
        ),
        *(
            (f"experiments.{name}.strategy", experiment.strategy, "a learning strategy", list(STRATEGIES))
            for name, experiment in config.experiments.items()
            if experiment.strategy is not None
        ),
        *(
            (f"experiments.{name}.teacher", experiment.teacher, "one of the experiments", experiments)
            for name, experiment in config.experiments.items()
            if experiment.teacher is not None
        ),
        *(
            (
                "search.development",
                search.development,
                "an asset that serves as development",
                serving("development"),
            )
            for search in [config.search]
            if search
        ),
        ("compare.baseline", config.compare.baseline, "one of the experiments", experiments),
        ("submit.experiment", config.submit.experiment, "one of the experiments", experiments),
        ("submit.rules", config.submit.rules, f"a ruleset in {RULESETS}", ruleset.names()),
        *(
            (f"benchmarks.{name}", name, "a benchmark of toolkit/benchmarks", list(BENCHMARKS))
            for name in config.benchmarks
        ),
    ]
    problems = [
        f"{key}: {value!r} is not {noun}{suggestion(value, choices)}"
        for key, value, noun, choices in mentions
        if value not in choices
    ]
    return problems or combinations(config)


def recipe_models(recipe: Path) -> list[str]:
    """Roles of the models that a recipe names, as "{clip}" in quotes: only these are fetched for it."""
    named = set(re.findall(r"""["']\{(\w+)\}["']""", recipe.read_text(encoding="utf-8")))
    return [role for role in Assets.model_fields if role in named]


def recipe_file(config: Config, recipe: str) -> Path:
    """Where a recipe that an experiment names lies."""
    searched = config.search and recipe in WRITTEN
    return (SEARCHED if searched else RECIPES) / f"{recipe}.yaml"


def recipe_source(config: Config, recipe: str) -> Path:
    """The file whose models and lists of words cover those of a recipe: its own, or the space of a search
    that will write it."""
    file = recipe_file(config, recipe)
    return Path(config.search.space) if config.search and file.parent == SEARCHED else file


def roles(config: Config) -> list[str]:
    """Roles of the assets that a run reads: those of the rules, and of the models that its recipes name."""
    recipes = {experiment.recipe for experiment in config.experiments.values()}
    named = {role for recipe in recipes for role in recipe_models(recipe_source(config, recipe))}
    return [role for role in Assets.model_fields if role in RULES_READ or role in named]


def assets_read(config: Config) -> list[str]:
    """Names of the assets that a run reads: in its `roles`, and as the questions of its search."""
    names = [getattr(config.assets, role) for role in roles(config)]
    return list(dict.fromkeys([*names, *([config.search.development] if config.search else [])]))


def serving(role: str) -> list[str]:
    """Names of the assets that can play a role."""
    return sorted(name for name, entry in assets.registry().items() if entry.serves == role)


def combinations(config: Config) -> list[str]:
    """Problems with settings that are right alone and wrong together."""
    problems = []
    rules = ruleset.load(config.submit.rules)
    entered = rules.scales
    if config.scale not in entered:
        problems.append(
            f"submit.rules: {config.submit.rules!r} takes entries of {' and '.join(entered)}, not of the "
            f"scale {config.scale!r}"
        )
    if config.search and not Path(config.search.space).is_file():
        problems.append(f"search.space: {config.search.space} does not exist: name a file of the project")
    search = config.search
    used = range(search.seed, search.seed + 1 + search.repeats) if search else ()
    if common := [seed for seed in config.seeds if seed in used]:
        problems.append(
            f"search.seed: {common[0]} is one of seeds: a winner is confirmed with seeds that the search has "
            "not used"
        )
    if search and search.seed + search.repeats >= LIMIT:
        problems.append(
            f"search.seed: {search.seed} leaves no seeds below 2^63 for the repeats that follow it"
        )
    if recipe_file(config, config.experiments[config.submit.experiment].recipe).parent == SEARCHED:
        problems.append(
            "submit.experiment: an entry holds the recipes of solution/recipes alone: copy what the search "
            f"wrote to {SEARCHED} there"
        )
    if len(config.experiments) < 2:
        problems.append(
            f"experiments: {min(config.experiments)} is alone: a comparison needs the baseline and another"
        )
    if len(set(config.seeds)) < len(config.seeds):
        problems.append(f"seeds: {config.seeds} has a seed twice")
    problems += [
        f"experiments.{name}: a name that ends like {ending[0]} is that of another training seed; choose "
        "another"
        for name in config.experiments
        if (ending := SUFFIX.search(name))
    ]
    if absent := [name for name in rules.answers if name not in config.benchmarks]:
        problems.append(
            f"benchmarks: {' and '.join(absent)} must be among them, the rules {config.submit.rules!r} ask "
            "for answers"
        )
    files = assets.registry()[config.assets.evaluation].files
    for name, settings in config.benchmarks.items():
        if lacking := [file for file in BENCHMARKS[name].inputs if file not in files]:
            problems.append(
                f"benchmarks.{name}: the asset {config.assets.evaluation} has no {', '.join(lacking)}"
            )
        if settings.prompt is not None and BENCHMARKS[name].instruction is None:
            problems.append(
                f"benchmarks.{name}.prompt: its question file has the whole prompt, it cannot be changed"
            )
    for name, experiment in config.experiments.items():
        if (experiment.strategy == "distillation") != (experiment.teacher is not None):
            problems.append(f"experiments.{name}: strategy: distillation and a teacher go together")
        elif experiment.teacher == name:
            problems.append(f"experiments.{name}.teacher: {name!r} is the experiment itself, name another")
        elif experiment.teacher and config.experiments[experiment.teacher].teacher:
            problems.append(f"experiments.{name}.teacher: {experiment.teacher!r} has a teacher itself")
    if config.finetune.division == "closed":
        problems += [
            f"experiments.{name}.strategy: {experiment.strategy!r} is for LoRA (division: open); closed is "
            "the kit's training"
            for name, experiment in config.experiments.items()
            if experiment.strategy
        ]
        problems += [
            f"{stage}.base: {section.base!r} is for LoRA (division: open); closed is the kit's training"
            for stage, section in (("pretrain", config.pretrain), ("finetune", config.finetune))
            if section.base != "full"
        ]
    return problems


REFUSED = "submit.zip will be refused (P3), all else can be made"  # for each sentence of `foreign`


def foreign(config: Config) -> list[str]:
    """A sentence for each asset that the rules do not admit: it may be tried, but an entry is refused."""
    return list(ruleset.load(config.submit.rules).foreign(dict(config.assets)))


def sentence(details: ErrorDetails) -> str:
    """One sentence for one finding of pydantic: the key, what was expected, what is near."""
    if not details["loc"]:
        return details["msg"]
    *parents, key = details["loc"]
    name = ".".join(str(part) for part in details["loc"] if part != "[key]")
    if details["type"] == "extra_forbidden":
        return f"{name}: unknown key{suggestion(str(key), known_keys(parents))}"
    if details["type"] == "missing":
        return f"{name}: this key is missing"
    if key == "[key]" and not isinstance(details["input"], str):
        return f"{name}: a name is a text, put it in quotes"
    if key == "[key]":
        return f"{name}: a name has lower-case letters, digits, _ and - only, at most {LONGEST_NAME} of them"
    short = {"model_type": "keys and values", "dict_type": "keys and values", "too_short": "at least one"}
    expected = short.get(details["type"], details["msg"].removeprefix("Input should be "))
    return f"{name}: expected {expected}, not {details['input']!r:.100}"


def known_keys(parents: list[int | str]) -> list[str]:
    """Keys of the section at `parents`."""
    section: type[BaseModel] = Config
    for part in parents:
        if part in MAPPINGS:
            section = MAPPINGS[part]
        elif part in section.model_fields:
            section = section.model_fields[part].annotation  # type: ignore[assignment]  # sections alone have keys
    return list(section.model_fields)


def suggestion(value: str, choices: list[str]) -> str:
    """`; did you mean x?` for a near name, else `; known: ...`."""
    near = get_close_matches(value, choices, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(choices) or 'none'}"
