"""S3, M1: the weights of an entry made with the kit: a whole model of the contest's, no adapter beside it."""

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.audit.submission import Submission
from toolkit.bundle.findings import WARNING, Finding
from toolkit.bundle.zip.archive import Bad
from toolkit.bundle.zip.contents import PICKLES, Allowance, assert_tensor_lists
from toolkit.counted import counted
from toolkit.parse import Malformed, json_value

HEADER = 1 << 24  # bytes of a safetensors header that are read: that of MGM-2B has some 200 kB
REMEDY = "ask for the merged weights that the answers were given with"
ADAPTER = re.compile(r"adapter_(?:model\.(?:bin|safetensors)|config\.json)$|non_lora_trainables\.bin$")


def safe(submission: Submission) -> Iterator[Finding]:
    """Z9: pickles are not opened here, and should not be by anybody."""
    for name, size in submission.sizes.items():
        if not size:
            continue
        with submission.open(name) as stream:
            head = stream.read(2)
        suffix = f".{name.rpartition('.')[2].lower()}"
        if suffix in PICKLES or head in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
            message = "is a pickle or may hold one: reading it runs what it says"
            yield Finding("Z9", name, message, "do not load it; ask for safetensors")
        elif suffix == ".bin":
            try:
                assert_tensor_lists(submission.path(name), Allowance(size))
            except Bad as bad:
                yield Finding(bad.id, name, str(bad), "do not load it; ask for safetensors")


def shapes(submission: Submission, name: str) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file, by its header alone; Malformed for a file that is none."""
    with submission.open(name) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER:
            raise Malformed(f"a header of {length} bytes, at most {HEADER} are read")
        header = json_value(stream.read(length))
    if not isinstance(header, dict):
        raise Malformed("its header is not a list of tensors")
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    try:
        return {key: [int(side) for side in value["shape"]] for key, value in tensors.items()}
    except (KeyError, TypeError, ValueError):
        raise Malformed("its header is not a list of tensors") from None


def whole(submission: Submission, model: str) -> Iterator[Finding]:
    """S3, M1: every tensor of MGM-2B in its shape and no other; adapters that were never merged."""
    folder = f"output/training_dirs/{model}"
    adapters = [name for name in submission.names(re.escape(folder) + r"/.+") if ADAPTER.search(name)]
    files = submission.weights(model)
    if adapters and not files:
        message = (
            "holds an adapter and no merged weights: copying files beside an adapter merges nothing, and the "
            "kit's evaluation cannot load it"
        )
        yield Finding("M1", adapters[0], message, REMEDY)
    if not files:
        return
    tensors: dict[str, list[int]] = {}
    for name in files:
        try:
            tensors |= shapes(submission, name)
        except Malformed as error:
            yield Finding("S3", name, f"is not a safetensors file: {error}", REMEDY)
            return
    if remains := [name for name in tensors if "lora_" in name]:
        yield Finding(
            "M1",
            files[0],
            f"{counted(len(remains), 'tensor')} of an adapter left in it, first {remains[0]}",
            REMEDY,
        )
    expected = official()
    # the output layer is the embeddings once more, and some savers leave it out
    absent, others = (
        sorted(expected.keys() - tensors.keys() - {"lm_head.weight"}),
        sorted(tensors.keys() - expected.keys() - set(remains)),
    )
    if absent:
        message = f"{len(absent)} of {len(expected)} tensors of MGM-2B are missing, first {absent[0]}"
        yield Finding("S3", files[0], message, REMEDY)
    if others:
        message = f"{counted(len(others), 'tensor is', 'tensors are')} none of MGM-2B's, first {others[0]}"
        yield Finding("S3", files[0], message, REMEDY, severity=WARNING)
    for name in sorted(expected.keys() & tensors):
        if tensors[name] != expected[name]:
            message = f"{name} is {tensors[name]}, MGM-2B has {expected[name]}"
            yield Finding("S3", files[0], message, REMEDY)
            break


def changed(submission: Submission, model: str, base: Path) -> Iterator[Finding]:
    """M1: the kit's finetuning changes every matrix of the language model. base: its folder before."""
    import torch

    from toolkit.mgm.weights import Weights

    before, same, compared = Weights(base), [], 0
    for file in submission.weights(model):
        after = Weights(submission.path(file))
        for name in sorted(after.keys() & before.keys()):
            if before[name].dim() > 1 and before[name].shape == after[name].shape:
                compared += 1
                if torch.equal(before[name].to(after[name].dtype), after[name]):
                    same.append(name)
    if same:
        message = f"{len(same)} of {compared} matrices are the base model's, first {same[0]}"
        yield Finding("M1", f"output/training_dirs/{model}", message, REMEDY)


def official() -> dict[str, list[int]]:
    """Shapes of MGM-2B's checkpoint, as the official code saves it."""
    import torch

    from toolkit.bench.synthetic import CONFIGS
    from toolkit.mgm.checkpoint import empty, official_state

    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in official_state(empty(CONFIGS["2B"])).items()}
