"""What a change rebuilds, and what it does not: the table of the README, proved by dry runs."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = "workflow/config/tiny.yaml"
RECIPE = "solution/recipes/recaption.yaml"
# of an experiment
CHAIN = ["score", "synthesize", "contamination", "check", "convert", "pretrain", "finetune", "merge"]
CHAIN += ["eval_textvqa", "eval_mmbench"]
TRAINING = CHAIN[CHAIN.index("pretrain") :]  # of a training run
BOTH = ("baseline", "synth")
LAST = {"crate", "validate", "submit"}
END = {"compare", "report", *LAST}
SOURCES = {"sources", *LAST}
CONVNEXT = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
WORLD = {"llm": "world-gemma"}  # roles whose asset is not called after them
ZOO = {f"download world-{name}" for name in ("gemma", "clip", "convnext", "captioner")}
ASSETS = {f"download world-{name}" for name in ("seed", "instruction", "evaluation")}


def chain(first: str, *experiments: str) -> set[str]:
    """Jobs of `experiments` from `first` on, and what follows from them; train.sh is made from the records of
    synth."""
    rules = CHAIN[CHAIN.index(first) :]
    return (
        {f"{rule} {name}" for rule in rules for name in experiments}
        | END
        | ({"train_script"} if "synth" in experiments else set())
    )


def both(*changes):
    """Several changes of the project, one after the other."""

    def change(project):
        for single in changes:
            single(project)

    return change


def setting(old: str, new: str) -> Callable:
    return lambda project: project.replace(CONFIG, old, new)


def other_rules(project) -> None:
    """Rules called `other` that take the same entries: a change of rules alone."""
    rules = project.path / "toolkit/contest/rules"
    (rules / "other.yaml").write_bytes((rules / "embedded.yaml").read_bytes())


def own(role: str) -> Callable:
    """An asset of the contestant's own, `mine`, that can play a role."""
    entry = f"mine: {{kind: own, role: of mine, serves: {role}, licence: none}}\n"
    return lambda project: (project.path / "solution/assets.yaml").write_text(entry)


def edited(file: str) -> Callable:
    return lambda project: project.append(file)


def touch_everything(project) -> None:
    """Later times on every file of the repository, as after a fresh clone beside old outputs."""
    for path in project.path.rglob("*"):
        inside = path.relative_to(project.path).parts[0]
        if path.is_file() and inside not in ("input", "output", ".snakemake", "submit.zip"):
            os.utime(path)


def asset(role: str, name: str) -> Callable:
    """Another asset in a role of the embedded world."""
    return setting(f"  {role}: {WORLD.get(role, 'world-' + role)}", f"  {role}: {name}")


def learns(how: str) -> Callable:
    """Another way to learn for the experiment synth."""

    def change(project) -> None:
        head, tail = (project.path / CONFIG).read_text().split("  synth:\n")
        plain = r"    strategy: null .*\n    teacher: null .*\n"
        changed = re.sub(plain, f"    {how}\n", tail, count=1)
        (project.path / CONFIG).write_text(f"{head}  synth:\n{changed}")

    return change


def recipe(name: str) -> Callable:
    return edited(f"solution/recipes/{name}.yaml")


EXPERIMENTS = "experiments:  # name: how its data is made; the baseline is an experiment like any other\n"
MMBENCH = {f"eval_mmbench {name}" for name in BOTH}
TEXTVQA = {f"eval_textvqa {name}" for name in BOTH}
POPE = {f"eval_pope {name}" for name in BOTH}
CONTAMINATION = {f"contamination {name}" for name in BOTH}

# change: (what is edited, all jobs that must run; all others must not)
TABLE = {
    "nothing": (lambda project: None, set()),
    "a fresh checkout: new times, same contents": (touch_everything, set()),
    "recipe of synth: its text": (recipe("recaption"), chain("synthesize", "synth")),
    "recipe of synth: a threshold": (
        lambda project: project.replace(RECIPE, "min_score: 0.2", "min_score: {quantile: 0.3}"),
        chain("synthesize", "synth"),
    ),
    "recipe of synth: what is computed": (
        lambda project: project.replace(RECIPE, "rep_len: 3", "rep_len: 2"),
        chain("score", "synth"),
    ),
    "recipe of the baseline": (recipe("baseline"), chain("synthesize", "baseline")),
    "a new experiment": (
        setting(EXPERIMENTS, EXPERIMENTS + "  third:\n    recipe: baseline\n"),
        chain("score", "third"),
    ),
    "how synth learns in the finetuning": (learns("strategy: neftune"), chain("finetune", "synth")),
    "how synth learns in both stages": (learns("strategy: curriculum"), chain("pretrain", "synth")),
    "who teaches synth": (
        learns("strategy: distillation\n    teacher: baseline"),
        chain("finetune", "synth"),
    ),
    # its rules, too: those of one scale take no entry of another
    "scale": (
        both(setting("scale: tiny", "scale: baseline_10k"), setting("rules: embedded", "rules: online_2024")),
        chain("check", *BOTH) | LAST,
    ),
    "assets.seed": (
        asset("seed", "pretrain_stage_1_10k"),
        chain("score", *BOTH) | {"download pretrain_stage_1_10k"},
    ),
    "assets.instruction": (
        asset("instruction", "finetuning_stage_1_12k"),
        chain("finetune", *BOTH) | {"download finetuning_stage_1_12k"},
    ),
    "assets.evaluation": (
        asset("evaluation", "eval_stage_1"),
        MMBENCH | TEXTVQA | CONTAMINATION | END | {"train_script", "download eval_stage_1"},
    ),
    "assets.llm": (asset("llm", "gemma-2b-it"), chain("pretrain", *BOTH) | {"download gemma-2b-it"}),
    "assets.clip": (
        asset("clip", "clip-vit-large-patch14-336"),
        chain("score", "synth") | chain("pretrain", "baseline") | {"download clip-vit-large-patch14-336"},
    ),
    "assets.convnext": (asset("convnext", CONVNEXT), chain("pretrain", *BOTH) | {f"download {CONVNEXT}"}),
    "synthesize.executor": (setting("executor: local", "executor: ray"), chain("score", *BOTH)),
    "assets.captioner": (
        asset("captioner", "blip2-opt-2.7b"),
        chain("score", "synth") | {"download blip2-opt-2.7b"},
    ),
    # roles that no recipe of these experiments names: nothing is fetched, nothing runs
    "assets.itm": (asset("itm", "blip-itm-large-coco"), set()),
    "assets.grounding": (asset("grounding", "owlvit-base-patch32"), set()),
    "assets.aesthetics": (asset("aesthetics", "aesthetics-predictor-v2"), set()),
    "assets.perplexity": (asset("perplexity", "gpt2"), set()),
    "assets.sentences": (asset("sentences", "all-minilm-l6-v2"), set()),
    "assets.watermark": (asset("watermark", "watermark_detector"), set()),
    "assets.nsfw": (asset("nsfw", "nsfw_image_detection"), set()),
    "assets.ocr": (both(own("ocr"), setting("ocr: pp-ocrv6-small", "ocr: mine")), set()),
    "assets.concreteness": (
        both(own("concreteness"), setting("concreteness: icc", "concreteness: mine")),
        set(),
    ),
    "assets.mgm": (both(own("mgm"), setting("mgm: own-mgm", "mgm: mine")), set()),
    "a new experiment with a model of its own": (
        setting(EXPERIMENTS, EXPERIMENTS + "  third:\n    recipe: basic\n"),
        chain("score", "third") | {"download world-watermark"},
    ),
    "seeds": (setting("seeds: [1024]", "seeds: [7]"), chain("pretrain", *BOTH)),
    "a further seed": (
        setting("seeds: [1024]", "seeds: [1024, 7]"),
        {f"{rule} {name}-seed7" for rule in TRAINING for name in BOTH} | END,
    ),
    "finetune.division": (setting("division: open", "division: closed"), chain("finetune", *BOTH)),
    "pretrain.base": (setting("base: full  # the", "base: fp8  # the"), chain("pretrain", *BOTH)),
    "finetune.base": (setting("base: full  # LoRA", "base: nf4  # LoRA"), chain("finetune", *BOTH)),
    "finetune.lora_rank": (setting("lora_rank: 16", "lora_rank: 8"), chain("finetune", *BOTH)),
    "finetune.lora_alpha": (setting("lora_alpha: 32", "lora_alpha: 16"), chain("finetune", *BOTH)),
    "finetune.lora_dropout": (setting("lora_dropout: 0.1", "lora_dropout: 0.0"), chain("finetune", *BOTH)),
    "benchmarks.textvqa": (
        setting("textvqa:\n    batch_size: 16", "textvqa:\n    batch_size: 8"),
        TEXTVQA | END | {"train_script"},
    ),
    "benchmarks.mmbench": (
        setting("mmbench:\n    batch_size: 16", "mmbench:\n    batch_size: 8"),
        MMBENCH | END | {"train_script"},
    ),
    "the prompt of a benchmark": (
        setting(
            "mmbench:\n    batch_size: 16  # questions answered at once, if they fit\n    prompt: null",
            "mmbench:\n    batch_size: 16  # questions answered at once, if they fit\n    prompt: Which?",
        ),
        MMBENCH | END | {"train_script"},
    ),
    "a further benchmark": (
        setting("benchmarks:  # which", "benchmarks:\n  pope: {}\n  # which"),
        POPE | CONTAMINATION | END | {"train_script"},
    ),
    "compare.baseline": (
        setting("baseline: baseline  # experiment that", "baseline: synth  # experiment that"),
        END,
    ),
    "compare.seed": (setting("seed: 1024  # of the resampling", "seed: 7  # of the resampling"), END),
    "compare.resamples": (setting("resamples: 10000", "resamples: 2000"), END),
    "report.title": (setting("Better Synth: raw", "Raw"), END - {"compare"}),
    "submit.experiment": (setting("experiment: synth", "experiment: baseline"), {"train_script", *LAST}),
    "search": (setting("search: null", "search: {development: world-development}"), set()),
    "submit.rules": (both(other_rules, setting("rules: embedded", "rules: other")), LAST),
    "solution/readme": (edited("solution/readme"), LAST),
    "toolkit/scales/tiny.yaml": (edited("toolkit/scales/tiny.yaml"), chain("pretrain", *BOTH)),
    "toolkit/contest/rules/embedded.yaml": (edited("toolkit/contest/rules/embedded.yaml"), LAST),
    "an asset's entry in the registry": (
        lambda project: project.replace(
            "toolkit/assets/registry.yaml", "role: fixed finetuning data", "role: finetuning data"
        ),
        {"download world-instruction"} | chain("finetune", *BOTH) | SOURCES,
    ),
    "toolkit/world/scene.py": (edited("toolkit/world/scene.py"), ASSETS | chain("score", *BOTH)),
    "toolkit/world/zoo/zoo.json": (
        edited("toolkit/world/zoo/zoo.json"),
        ZOO | chain("score", "synth") | chain("pretrain", "baseline"),
    ),
    "toolkit/data/operators/…": (edited("toolkit/data/operators/__init__.py"), chain("score", *BOTH)),
    "toolkit/data/convert.py": (edited("toolkit/data/convert.py"), chain("check", *BOTH)),
    # caption_loss_filter runs the model
    "toolkit/mgm/model.py": (edited("toolkit/mgm/model.py"), chain("score", *BOTH)),
    "toolkit/train/trainer.py": (edited("toolkit/train/trainer.py"), chain("pretrain", *BOTH)),
    "toolkit/train/merge.py": (edited("toolkit/train/merge.py"), chain("merge", *BOTH)),
    "toolkit/benchmarks/mmbench.py": (
        edited("toolkit/benchmarks/mmbench.py"),
        MMBENCH | CONTAMINATION | END | {"train_script", "sources"},
    ),
    "toolkit/evaluate/contamination.py": (
        edited("toolkit/evaluate/contamination.py"),
        CONTAMINATION | END - {"compare"},
    ),
    "toolkit/evaluate/compare.py": (edited("toolkit/evaluate/compare.py"), END),
    "toolkit/report/page.py": (edited("toolkit/report/page.py"), END - {"compare"}),
    "toolkit/bundle/pack.py": (edited("toolkit/bundle/pack.py"), {"submit"}),
    "toolkit/bundle/papers/crate.py": (edited("toolkit/bundle/papers/crate.py"), LAST),
    "toolkit/bundle/papers/sources.py": (edited("toolkit/bundle/papers/sources.py"), SOURCES),
    "requirements/common.lock": (edited("requirements/common.lock"), SOURCES),
    "CITATION.cff": (edited("CITATION.cff"), SOURCES),
    "toolkit/mgm/device.py": (edited("toolkit/mgm/device.py"), chain("pretrain", *BOTH)),
    "toolkit/mgm/generate.py": (
        edited("toolkit/mgm/generate.py"),
        MMBENCH | TEXTVQA | END | {"train_script"},
    ),
    "toolkit/benchmarks/pope.py": (
        edited("toolkit/benchmarks/pope.py"),
        CONTAMINATION | END | {"train_script", "sources"},
    ),
    "toolkit/evaluate/cli.py": (edited("toolkit/evaluate/cli.py"), set()),
    "toolkit/train/monitor.py": (edited("toolkit/train/monitor.py"), set()),
    "toolkit/errors.py": (edited("toolkit/errors.py"), set()),
}


def test_every_key_of_the_configuration_has_a_row():
    settings = yaml.safe_load((ROOT / CONFIG).read_text())
    keys = {f"{name}.{key}" for name, value in settings.items() if isinstance(value, dict) for key in value}
    keys |= {name for name, value in settings.items() if not isinstance(value, dict)}
    assert {key for key in keys if not key.startswith("experiments.")} <= set(TABLE)


@pytest.mark.parametrize("change", TABLE)
def test_rebuild(project, change):
    edit, expected = TABLE[change]
    before = (project.path / CONFIG).read_text()
    edit(project)
    configured = (project.path / CONFIG).read_text() != before
    # the configuration is packed with the entry
    assert project.jobs() == expected | (SOURCES if configured else set())


def test_where_a_training_runs_rebuilds_nothing(project):
    several = [f"{rule}:{resource}" for rule in TRAINING[:2] for resource in ("nodes=2", "gpu=8", "mpi=srun")]
    assert project.jobs("--set-resources", *several) == set()


def test_an_asset_that_the_rules_do_not_admit_is_named_before_anything_runs(project):
    asset("llm", "gemma-2b-it")(project)
    status, printed = project.snakemake("submit.zip", "--dry-run")
    assert status == 0
    sentence = "submit.zip will be refused (P3), all else can be made: assets.llm is gemma-2b-it"
    assert printed.count(sentence) == 1


def test_strategies_want_several_seeds_before_anything_is_trained(project):
    status, printed = project.snakemake("output/reports/strategies.md", "--dry-run")
    assert status == 1 and "strategies are compared over training seeds: give several" in printed
