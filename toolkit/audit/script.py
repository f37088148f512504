"""T2: a training script against the kit's train_mgm_2b_stage_1.sh, of which nobody may change the lines below
the editable block.

kit_lines.json has the SHA-256 of each such line (12 digits, runs of spaces as one, without comments and blank
lines) of the kit's two scripts: reyvan14/Better_Synth_challenge at bb04260.
"""

import difflib
import hashlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from toolkit.bundle.findings import WARNING, Finding
from toolkit.contest.ruleset import Numbers, Rules
from toolkit.files import read_json

BLOCK_ENDS = "Editable Part Ends"
KIT = Path(__file__).with_name("kit_lines.json")
ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(?:\"([^\"]*)\"|'([^']*)'|([^\s;#]*))\s*(?:#.*)?$")
LONGEST, LINES = 1 << 16, 2000  # characters of a command; lines that are compared: the kit's has 106
MESSAGE = re.compile(r"echo [^`|>;&]*")
REMEDY = "ask for a run of the kit's script with nothing but its editable block changed"
# what the kit gives the trainer beside the numbers that the rules fix, in both stages
GIVEN = {"lr_scheduler_type": "cosine", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": "-2"}
LORA = "lora_enable"


def commands(text: str) -> dict[str, dict[str, str]]:
    """Flags of the trainer by stage, with plain values of variables put in; nothing is executed."""
    known, by_stage = dict[str, str](), dict[str, dict[str, str]]()
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if match := ASSIGNMENT.match(line):
            value = next(value for value in match.groups()[1:] if value is not None)
            known[match[1]] = Template(value).safe_substitute(known)
        elif re.search(r"mgm/train/train(?:_mem)?\.py", line) and not line.lstrip().startswith("#"):
            flags = flags_of(Template(line).safe_substitute(known))
            by_stage.setdefault(stage_of(flags), flags)
    return by_stage


def flags_of(command: str) -> dict[str, str]:
    """`--name value` of a command line; a flag without a value is "True"."""
    try:
        words = shlex.split(command[:LONGEST])
    except ValueError:  # an open quote
        words = command[:LONGEST].split()
    flags = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags[name] = value if equals else "True" if following.startswith("--") else following
    return flags


def stage_of(flags: dict[str, str]) -> str:
    """The stage that a command of the trainer is: pretraining trains the projector alone."""
    return "pretrain" if flags.get("tune_mm_mlp_adapter", "False") == "True" else "finetune"


def unchanged(name: str, text: str) -> Iterator[Finding]:
    """T2: the lines below the editable block that are not the kit's, as warnings, since they may be harmless.
    Comments, blank lines and plain messages do not count."""
    if BLOCK_ENDS not in text:
        message = "has no editable block: it is not the kit's training script"
        yield Finding("T2", name, message, REMEDY)
        return
    first = text[: text.index(BLOCK_ENDS)].count("\n") + 2
    lines = [
        (number, " ".join(line.split()))
        for number, line in enumerate(text.splitlines()[first - 1 :], start=first)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(lines) > LINES:
        yield Finding("T2", name, f"has {len(lines)} lines: it is not the kit's training script", REMEDY)
        return
    digests = [hashlib.sha256(line.encode()).hexdigest()[:12] for _, line in lines]
    kits = [value.split() for value in read_json(KIT).values()]
    matchers = [difflib.SequenceMatcher(None, kit, digests, autojunk=False) for kit in kits]
    absent = 0
    for kind, begin, end, low, high in max(matchers, key=lambda matcher: matcher.ratio()).get_opcodes():
        if kind == "equal":
            continue
        absent += max(0, (end - begin) - (high - low))
        if changed := [line for line in lines[low:high] if not MESSAGE.fullmatch(line[1])]:
            quoted = " ⏎ ".join(line.removesuffix(" \\") for _, line in changed)
            message = f"not of the kit's script: {quoted}"
            yield Finding("T2", name, message, REMEDY, line=changed[0][0], severity=WARNING)
    if absent:
        message = f"lines of the kit's script that are missing: {absent}"
        yield Finding("T2", name, message, REMEDY, severity=WARNING)


def numbers(name: str, stage: str, flags: dict[str, str], rules: Rules) -> Iterator[Finding]:
    """T2: what a command line gives the trainer is what the rules fix for the kit's own training."""
    fixed = rules.fixed.pretrain if stage == "pretrain" else rules.fixed.finetune["closed"]
    for flag, value in {**GIVEN, **_expected(fixed, rules)}.items():
        given = flags.get(flag)
        if given is None and flag == "image_aspect_ratio" and value == "square":
            continue  # the trainer's own default
        if given is None or "$" in given:
            continue  # the line itself is listed where it is not the kit's
        if not same(given, value):
            message = f"--{flag} of the {stage} command is {given}, the kit has {value}"
            yield Finding("T2", name, message, REMEDY)
    if flags.get(LORA, "False") == "True":
        message = f"the {stage} command trains adapters (LoRA), the kit trains the model itself"
        yield Finding("T2", name, message, REMEDY)


def _expected(fixed: Numbers, rules: Rules) -> dict[str, Any]:
    return {
        "version": rules.fixed.template,
        "learning_rate": fixed.learning_rate,
        "weight_decay": fixed.weight_decay,
        "warmup_ratio": fixed.warmup_ratio,
        "num_train_epochs": fixed.epochs,
        "image_aspect_ratio": fixed.image_aspect_ratio,
        "image_size_aux": rules.fixed.image_size_aux,
        "model_max_length": rules.fixed.model_max_length,
        "group_by_modality_length": fixed.group_by_modality_length,
    }


def same(given: str, value: Any) -> bool:
    try:
        return float(given) == float(value) if not isinstance(value, bool) else given == str(value)
    except ValueError:
        return given == str(value)
