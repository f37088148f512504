"""What a configuration asks of a machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit import assets, scales
from toolkit.assets import mirror
from toolkit.config import Config, assets_read, foreign
from toolkit.train import memory
from toolkit.train.memory import GIB, SIZES, Kind, Sizes

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
OTHERS = GIB  # of disk, allowed for: rows, scores, reports, logs
# lighter ways to finetune than the key, and the settings that choose them
LIGHTER: dict[Kind, tuple[Kind, ...]] = {"full": ("lora", "nf4"), "lora": ("nf4",)}
SETTINGS = {"lora": "finetune.division: open", "nf4": "finetune.division: open with finetune.base: nf4"}


@dataclass(frozen=True)
class Work:
    """Training stages, and what has to be fetched and kept for them; sizes in bytes.

    tokens: of the longest row. gpus: that each training stage gets; 0 trains on the CPU. fp8: whether a stage
    multiplies in 8 bits. kept: by all runs; checkpoints: of one, for a while. unsized: files to fetch whose
    size is not known. addresses: of files to fetch. lacking: assets of one's own that are not there and that
    no address has. foreign: a sentence for each asset that the rules do not admit.
    """

    sizes: Sizes
    tokens: int
    kinds: tuple[Kind, ...]
    rank: int
    gpus: int
    fp8: bool = False
    ray: bool = False
    fetched: int = 0
    unsized: int = 0
    kept: int = 0
    checkpoints: int = 0
    addresses: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def device(self, kind: Kind, setting: str) -> int:
        """Bytes of each GPU that a stage needs at least."""
        return memory.least(
            self.sizes, kind, tokens=self.tokens, rank=self.rank, setting=setting, processes=max(self.gpus, 1)
        )

    def host(self, kind: Kind, setting: str, *, checkpoint: bool) -> int:
        """Bytes of the host's memory that a stage takes at its peak."""
        return memory.host(
            self.sizes,
            kind,
            rank=self.rank,
            setting=setting,
            processes=max(self.gpus, 1),
            checkpoint=checkpoint,
        )

    def whole(self) -> int:
        """Free bytes of each GPU with which the full finetuning keeps its optimizer there."""
        count = memory.trained(self.sizes, "full", 0)
        held = memory.state("zero2", self.sizes.parameters, count, max(self.gpus, 1))
        return int(held / (1 - memory.STEP) / (1 - memory.RESERVE))

    def setting(self, kind: Kind, budget: int) -> str:
        """Where full finetuning keeps its optimizer on GPUs with `budget` bytes each, of memory.SETTINGS."""
        count = memory.trained(self.sizes, kind, self.rank)
        chosen = memory.fastest(self.sizes.parameters, count, max(self.gpus, 1), budget)
        return chosen if kind == "full" else "zero2"


def finetuning(division: str, base: str) -> Kind:
    """How a configuration finetunes."""
    return "full" if division == "closed" else "nf4" if base == "nf4" else "lora"


def stage(scale: str, kind: Kind, rank: int, gpus: int, base: str) -> Work:
    """One training stage by itself."""
    numbers = scales.load(scale)
    return Work(SIZES[numbers.size], numbers.model_max_length, (kind,), rank, gpus, fp8=base == "fp8")


def of(config: Config, present: Callable[[str], bool] | None = None) -> Work:
    """The whole of a configuration on one GPU, none where the scale is the embedded world's.

    present: whether an asset is there already; as a rule where the workflow puts it.
    """
    present = present or (lambda name: Path("input", name, "manifest.json").is_file())
    numbers, tune = scales.load(config.scale), config.finetune
    sizes, kind = SIZES[numbers.size], finetuning(tune.division, tune.base)
    missing = {name for name in assets_read(config) if not present(name)}
    files = [file for name in sorted(missing) for file in getattr(assets.entry(name), "downloads", ())]
    return Work(
        sizes,
        numbers.model_max_length,
        ("pretrain", kind),
        tune.lora_rank,
        gpus=int(not numbers.embedded),
        fp8="fp8" in (config.pretrain.base, tune.base),
        ray=config.synthesize.executor == "ray",
        # an archive lies beside its content until it is unpacked
        fetched=sum((file.bytes or 0) * (1 + file.name.endswith((".tar.gz", ".zip"))) for file in files),
        unsized=sum(file.bytes is None for file in files),
        kept=kept(sizes, kind, tune.lora_rank, len(config.experiments) * len(config.seeds)),
        # float32 values and two moments; the next is written before the last is deleted
        checkpoints=2 * 12 * memory.trained(sizes, kind, tune.lora_rank),
        # a file without an address of its own is on the hub
        addresses=tuple(getattr(file, "url", HUB) for file in files),
        lacking=tuple(
            name
            for name in sorted(missing)
            if isinstance(assets.entry(name), assets.Own) and not mirror.has(name)
        ),
        foreign=tuple(foreign(config)),
    )


def kept(sizes: Sizes, kind: Kind, rank: int, runs: int) -> int:
    """Bytes on the disk of what `runs` training runs leave."""
    model = 2 * sizes.saved  # in bf16
    adapter = 0 if kind == "full" else 4 * memory.trained(sizes, kind, rank)
    return runs * (model + adapter + 2 * sizes.connector) + OTHERS
