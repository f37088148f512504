"""Distillation at the labelled tokens (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
arXiv 1503.02531; word by word as in Kim & Rush 2016, "Sequence-Level Knowledge Distillation", arXiv
1606.07947): the loss is (1 - SHARE) of the plain one and SHARE of KL(teacher || student), at temperature 1.

The teacher's distribution is that of its TOP likeliest tokens, renormalised. The teacher looks at every row
once: these tokens and their probabilities are kept in CACHE under the hash of its files, of rows, images and
code, for every later run, whatever its seed.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from toolkit import code
from toolkit.contest.records import read_record
from toolkit.data.samples import image_file
from toolkit.errors import UserError
from toolkit.files import atomic, sha256
from toolkit.mgm.checkpoint import load_checkpoint
from toolkit.mgm.loss import ROWS, cross_entropy
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train import distributed
from toolkit.train.dataset import Conversations
from toolkit.train.strategies.base import Pass, Strategy
from toolkit.train.sweep import sweep

SHARE = 0.5  # of the teacher in the loss
TOP = 32  # tokens
CACHE = Path(".cache/teachers")
SIZES = ("image_size_aux", "image_grid", "image_global", "model_max_length")


class Distillation(Strategy):
    """The loss. teacher: finetuning folder with merge.json.

    tokens, shares: of each row, TOP at each labelled position: int32 and float32 [positions, TOP].
    """

    def __init__(self, seed: int, teacher: Path) -> None:
        super().__init__(seed)
        self.teacher = teacher

    def prepare(self, model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> None:
        """Have the teacher look at the rows, unless it did. UserError for a teacher of another kind."""
        folder, digest = merged(self.teacher)
        path = CACHE / f"{_key(digest, dataset, device)}.safetensors"
        if not distributed.agree(path.is_file()):
            teacher = load_checkpoint(folder, model.dtype, device)
            assert_comparable(teacher, model, dataset, folder)
            values, counts = sweep(teacher, dataset, device, likeliest)
            if distributed.rank() == 0:
                tokens, shares = values[:, :TOP].int(), values[:, TOP:].contiguous()
                with atomic(path) as temporary:
                    save_file({"tokens": tokens, "shares": shares, "counts": torch.tensor(counts)}, temporary)
            distributed.barrier()
        try:
            kept = load_file(path)
        except SafetensorError:
            raise UserError(f"{path} is damaged: delete it, the teacher looks again") from None
        counts = kept["counts"].tolist()
        self.tokens, self.shares = (kept[name].split(counts) for name in ("tokens", "shares"))

    def loss(self, model: MGMForCausalLM, part: Pass) -> Tensor:
        hidden, head = model.decode(part.embeds, part.layout, part.positions), model.lm_head.weight
        rows = [item.sample.index for item in part.items]
        tokens, shares = (
            torch.cat([values[row] for row in rows]).to(hidden.device)
            for values in (self.tokens, self.shares)
        )
        total = cross_entropy(hidden, head, part.targets, (1 - SHARE) * part.weights)
        for start in range(0, len(hidden), ROWS):
            few = slice(start, start + ROWS)
            # the logits of a few tokens at a time, and computed again in the backward pass
            total = total + checkpoint(
                divergence,
                hidden[few],
                head,
                tokens[few].long(),
                shares[few],
                SHARE * part.weights[few],
                use_reentrant=False,
            )
        return total


def likeliest(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """TOP tokens and their probabilities, renormalised: float32 [n, 2 TOP]; arguments as in `at_labels`."""
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        for part in hidden.split(ROWS):
            logits, tokens = (part @ weight.to(part.dtype).T).float().topk(TOP)
            parts.append(torch.cat([tokens.float(), logits.softmax(-1)], dim=1))
    return torch.cat(parts) if parts else torch.empty(0, 2 * TOP)


def divergence(hidden: Tensor, head: Tensor, tokens: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[i] * KL(shares[i] || softmax(head @ hidden[i]) at tokens[i]), a float32 scalar."""
    with torch.autocast(hidden.device.type, enabled=False):
        student = (hidden @ head.to(hidden.dtype).T).float().log_softmax(-1).gather(1, tokens)
        return (weights * (torch.xlogy(shares, shares) - shares * student).sum(-1)).sum()


def merged(folder: Path) -> tuple[Path, str]:
    """(the merged model of a finetuning folder, SHA-256 of merge.json, which lists its files). UserError
    where a file is not the listed one."""
    proof = folder / "merge.json"
    record = read_record(proof, "merge")
    if record.results.get("checkpoint") not in ("merged", "."):
        raise UserError(f"{proof} names no checkpoint: run `python -m toolkit train merge` again")
    path = folder / record.results["checkpoint"]
    for name in record.outputs:
        record.output(path / name)
    return path, sha256(proof)


def assert_comparable(
    teacher: MGMForCausalLM, student: MGMForCausalLM, dataset: Conversations, folder: Path
) -> None:
    """UserError unless the model in `folder` reads the same tokens and pixels as the student of `dataset`."""
    sizes = [
        (model.config.vocab_size, model.tokens_per_image, *(getattr(model.mgm, name) for name in SIZES))
        for model in (teacher, student)
    ]
    own = load_tokenizer(folder, teacher.mgm.model_max_length).get_vocab()
    if sizes[0] != sizes[1] or own != dataset.read.tokenizer.get_vocab():
        raise UserError(
            f"{folder} reads other tokens or images than the model that is trained: choose a teacher of the "
            "same language model and scale"
        )


def _key(digest: str, dataset: Conversations, device: torch.device) -> str:
    """What the teacher's view of the rows depends on, hashed."""
    read = dataset.read
    images = {row["image"] for row in dataset.rows if "image" in row}
    files = {name: sha256(image_file(name, read.images, read.samples)) for name in sorted(images)}
    parts = [
        digest,
        TOP,
        dataset.rows,
        files,
        read.template,
        read.config.image_aspect_ratio,
        code.digest("toolkit.train.sweep"),
        device.type,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
