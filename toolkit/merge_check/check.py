"""The check: of every tensor what it had to become, and of the models what they compute.

Merges that change nothing, or the wrong thing, load and answer like any model; only a comparison shows them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.merge_check.adapter import Adapter, read, rounding
from toolkit.mgm.weights import Weights

SHARE = 0.05  # by which the part of an update that is there may differ from what its rounding leaves
SHOWN = 10  # problems at most, each with its first tensor
REMAINS = ("lora_", ".base_layer.", ".modules_to_save.")
# what versions of transformers write or leave out: tables that follow from the configuration
BUFFERS = ("inv_freq", ".masked_bias", ".attn.bias", "position_ids")


def check(
    base: Path, adapter: Path, merged: Path, *, logits: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """What was found, and what is wrong with it.

    results: tensors_total, tensors_adapted, tensors_changed, adapter_tensors_left; least_update_kept: the
    least part of an update that its rounding to the merged type leaves; logits: see `logits.compared`.
    UserError for folders that cannot be compared.
    """
    config = _config(base)
    if str(_config(merged).get("model_type")).startswith("mgm"):
        raise UserError(
            f"{merged} is an MGM, which has three bases: `python -m toolkit train merge` proves it"
        )
    if config.get("quantization_config"):
        raise UserError(f"{base} is quantised: name the model with full weights that it was made of")
    before, after = Weights(base), Weights(merged)
    expected = read(adapter, str(config.get("model_type")))
    comparison = Comparison(before, after, bool(config.get("tie_word_embeddings")))
    comparison.run(expected)
    problems = comparison.problems
    if not comparison.changed:
        problems.insert(0, "nothing changed: the merged model is the base")
    remains = [name for name in after if any(part in name for part in REMAINS)]
    if (merged / "adapter_config.json").is_file():
        remains.append("adapter_config.json")
    problems += [f"{name} of the adapter is left in the merged folder" for name in remains[:SHOWN]]
    results = {
        "tensors_total": len(before),
        "tensors_adapted": len(comparison.adapted),
        "tensors_changed": len(comparison.changed),
        "adapter_tensors_left": len(remains),
        "least_update_kept": f"{comparison.kept:.3f}",
    }
    if comparison.kept < 0.5:
        results["rounding"] = "more than half of an update is lost in the merged type: merge in float32"
    if logits and not comparison.foreign:
        from toolkit.merge_check.logits import compared

        differences, wrong = compared(base, adapter, merged, comparison.types)
        results |= differences
        problems += wrong
    return results, problems


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    if not isinstance(config, dict):
        raise UserError(f"{folder} holds no config.json: name the folder of a model")
    return config


class Comparison:
    """Tensors of `before` and `after`. tied: whether the output layer is the table of embeddings.

    changed, adapted: names of tensors that did and had to; kept: see `check`; types: of the merged tensors.
    foreign: names that only one of the folders has.
    """

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], tied: bool) -> None:
        self.before, self.after, self.tied = before, after, tied
        self.problems: list[str] = []
        self.changed: set[str] = set()
        self.adapted: set[str] = set()
        self.foreign: list[str] = []
        self.types: set[torch.dtype] = set()
        self.kept = 1.0

    def run(self, adapter: Adapter) -> None:
        """Compare everything."""
        self.foreign = sorted(
            name
            for name in self.before.keys() ^ self.after.keys()
            if not (name.endswith(BUFFERS) or (self.tied and name.endswith("lm_head.weight")))
            and not any(part in name for part in REMAINS)
        )
        for name in self.foreign[:SHOWN]:
            has, lacks = ("base", "merged model") if name in self.before else ("merged model", "base")
            self.problems.append(f"{name} is in the {has} and not in the {lacks}")
        updates = {self._name(f"{module}.weight"): update for module, update in adapter.updates.items()}
        saved = {self._name(name): tensor for name, tensor in adapter.saved.items()}
        self.adapted = updates.keys() | saved.keys()
        wrong: dict[str, list[str]] = {}
        for name in sorted(self.before.keys() & self.after.keys()):
            old, new = self.before[name], self.after[name]
            self.types.add(new.dtype)
            if old.shape != new.shape or not torch.equal(old.to(new.dtype), new):
                self.changed.add(name)
            try:
                if old.shape != new.shape:
                    problem = f"has shape {list(new.shape)}, in the base {list(old.shape)}"
                elif name in updates:
                    parts = updates[name].parts.values()
                    problem = self._updated(old, new, *updates[name].of(old), rounding(new, *parts))
                elif name in saved:
                    same = torch.equal(saved[name].to(new.dtype), new)
                    problem = "" if same else "is not the tensor that was trained in its place"
                else:
                    problem = "changed, and the adapter does not touch it" if name in self.changed else ""
            except UserError as error:
                problem = str(error)
            if problem:
                wrong.setdefault(problem, []).append(name)
        for problem, names in list(wrong.items())[:SHOWN]:
            more = f" and {counted(len(names) - 1, 'more tensor')}" if len(names) > 1 else ""
            self.problems.append(f"{names[0]}{more}: {problem}")
        if len(wrong) > SHOWN:
            self.problems.append(f"and {counted(len(wrong) - SHOWN, 'more problem')}")

    def _name(self, name: str) -> str:
        """The base's name of an adapter's tensor: the same, or the only one that ends like it, for versions
        of transformers differ in how names begin."""
        parts = name.split(".")
        for start in range(len(parts) - 1):
            ending = ".".join(parts[start:])
            same = [known for known in self.before if known == ending or known.endswith(f".{ending}")]
            if len(same) == 1:
                return same[0]
            if same:
                break
        tied = ", whose output layer is its embeddings" if self.tied and "lm_head" in name else ""
        raise UserError(f"the adapter changes {name}, which is not in the base{tied}")

    def _updated(self, old: Tensor, new: Tensor, exact: Tensor, bound: Tensor, eps: float) -> str:
        """What is wrong with a merged weight, given the exact one and the sums of its update; "" if nothing.

        Each number may differ by the rounding of the types; that alone would let a small update be missing.
        So the part of the update that is there, the projection of the change on it, is compared with the
        part that is there when the exact weight is rounded.
        """
        before, actual, rounded = old.float(), new.float(), exact.to(new.dtype).float()
        update = exact - before
        size = float(update.double().square().sum())
        if size == 0:
            return "the adapter's update of it is zero" if torch.equal(before, actual) else "changed by more"

        def part(weight: Tensor) -> float:
            return float(((weight - before).double() * update.double()).sum()) / size

        there, expected = part(actual), part(rounded)
        self.kept = min(self.kept, expected)
        if not torch.equal(rounded, before) and torch.equal(actual, before):
            return "is the base's: the update was not added"
        if not actual.isfinite().all():
            return "has numbers that are not finite"
        if abs(there - expected) > SHARE * max(1.0, abs(expected)):
            return f"holds {there:.3f} times its update in place of {expected:.3f}"
        apart = (actual - exact).abs() - eps * (2 * exact.abs() + 2 * before.abs() + 4 * bound)
        if (apart > 0).any():
            count = int((apart > 0).sum())
            return f"{counted(count, 'number')} differ from base and update by more than rounding"
        return ""
