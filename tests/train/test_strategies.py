"""Learning strategies: each continues to the bit, trains the same in two processes, and does what its paper
says."""

import ast
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forks
import numpy
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import finetune, job, merge, pretrain

from toolkit.bench import synthetic
from toolkit.config import STRATEGIES
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.mgm.layout import IGNORE_INDEX
from toolkit.mgm.model import TRAINED_NAMES
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train import distributed, stages
from toolkit.train.dataset import Conversations
from toolkit.train.optimizer import AdamW
from toolkit.train.stages import train_only
from toolkit.train.step import Execution, Stepper, expanded, shares
from toolkit.train.strategies import distillation, hard_negatives, registry
from toolkit.train.strategies.base import Item, Outset, Strategy
from toolkit.train.strategies.curriculum import Curriculum
from toolkit.train.strategies.hard_negatives import HardNegatives
from toolkit.train.strategies.importance import Importance
from toolkit.train.strategies.neftune import NEFTune
from toolkit.train.strategies.progressive import Progressive
from toolkit.train.strategies.resolution import Resolution
from toolkit.train.sweep import row_losses
from toolkit.train.trainer import Trainer

CPU = torch.device("cpu")
CASES = [(name, stage) for name, changes in STRATEGIES.items() for stage in changes]


@pytest.fixture(scope="session")
def taught(trained, parts, tmp_path_factory):
    """The folder of a merged finetuning, a copy of what others look at, and a place for caches."""
    folder = shutil.copytree(trained / "finetune", tmp_path_factory.mktemp("teacher") / "finetune")
    assert merge(parts, folder) == 0
    return SimpleNamespace(teacher=folder, caches=tmp_path_factory.mktemp("caches"))


@pytest.fixture(autouse=True)
def cache(taught, monkeypatch):
    monkeypatch.setattr(distillation, "CACHE", taught.caches)


def how(name: str, taught) -> dict:
    """What a job states of a strategy."""
    return {"strategy": name, "teacher": taught.teacher if name == "distillation" else None}


def outputs(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "monitor.jsonl"]
    return {path.name: sha256(path) for path in files}


@pytest.fixture(scope="module")
def tiny():
    model = synthetic.model("tiny", torch.float32, CPU)
    parameters = train_only(model, lambda name: any(part in name for part in TRAINED_NAMES))
    return model.train(), AdamW(parameters, 0.0, 1.0, CPU)


def numbered(model, count: int) -> list:
    samples = synthetic.samples("pretrain", count, model.mgm, 0)
    return [replace(sample, index=number) for number, sample in enumerate(samples)]


def gradients(tiny, samples, strategy: Strategy, tokens: int = 10**6, step: int | None = 3):
    model, optimizer = tiny
    loss = Stepper(model, optimizer, Execution(tokens), CPU, strategy).run(samples, 2, 2, step).item()
    cloned = {name: p.grad.clone() for name, p in optimizer.parameters.items() if p.grad is not None}
    optimizer.discard()
    return loss, cloned


def test_every_strategy_is_a_module_with_a_name_of_the_configuration():
    folder = Path(registry.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "registry"}
    assert modules == {name.replace("-", "_") for name in STRATEGIES}
    assert {*registry.ALONE, "distillation"} == STRATEGIES.keys()


@pytest.mark.numerics
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_a_killed_run_ends_with_the_same_bits(
    name, stage, trained, taught, parts, conversations, tmp_path, monkeypatch
):
    def train(output: Path) -> None:
        if stage == "pretrain":
            pretrain(parts, conversations, output, **how(name, taught))
        else:
            projector = trained / "pretrain" / "mm_projector.bin"
            finetune(parts, conversations, projector, output, **how(name, taught))

    step = Trainer._step

    def stop(self, number, *rest):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    train(tmp_path / "whole" / stage)
    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts" / stage)
    assert (tmp_path / "parts" / stage / "checkpoint-4").exists()
    monkeypatch.setattr(Trainer, "_step", step)
    train(tmp_path / "parts" / stage)
    whole = outputs(tmp_path / "whole" / stage)
    assert outputs(tmp_path / "parts" / stage) == whole
    tensors = "mm_projector.bin" if stage == "pretrain" else "adapter_model.safetensors"
    assert whole[tensors] != sha256(trained / stage / tensors)
    record = json.loads((tmp_path / "whole" / stage / "run.json").read_text())
    assert record["settings"]["strategy"] == name
    plain = json.loads((trained / stage / "run.json").read_text())
    assert "strategy" not in plain["settings"] and record["results"]["steps"] == plain["results"]["steps"]


SEVERAL = """
import os, sys
from pathlib import Path
from tiny_training import changed
from toolkit.train import stages
from toolkit.train.inputs import BaseModels
from toolkit.train.strategies import distillation
caches, samples, images, projector, teacher, llm, clip, convnext, output, *cases = sys.argv[1:]
distillation.CACHE = Path(caches)
base = BaseModels(Path(llm), Path(clip), Path(convnext))
for case in cases:
    name, stage, os.environ["MASTER_PORT"] = case.split(":")
    folder = Path(output) / case.rpartition(":")[0].replace(":", "-")
    job = stages.Job(Path(samples), Path(images), base, changed(micro_batch=4), 3, folder, ["python"],
                     strategy=name, teacher=Path(teacher) if name == "distillation" else None)
    if stage == "pretrain":
        stages.pretrain(job)
    else:
        stages.finetune(job, Path(projector), stages.Lora(4, 8, 0.0, "full"))
"""


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo alone")
def test_two_processes_train_as_one(trained, taught, parts, conversations, tmp_path):
    few = tmp_path / "rows.json"
    few.write_text(json.dumps(json.loads(conversations.samples.read_text())[:16]))
    inputs = [few, conversations.images, trained / "pretrain" / "mm_projector.bin", taught.teacher]
    inputs += [parts.llm, parts.clip, parts.convnext]
    cases = [f"{name}:{stage}:{distributed.free_port()}" for name, stage in CASES]
    for processes in (1, 2):
        (tmp_path / f"caches{processes}").mkdir()
        started = []
        for rank in range(processes):
            several = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            place = {"MASTER_ADDR": "127.0.0.1"}
            arguments = [tmp_path / f"caches{processes}", *inputs, tmp_path / str(processes), *cases]
            started.append(
                forks.Fork(
                    [sys.executable, "-c", SEVERAL, *arguments],
                    env=os.environ | place | (several if processes > 1 else {}),
                )
            )
        assert [process.wait() for process in started] == [0] * processes
    for name, stage in CASES:
        logs = [tmp_path / str(processes) / f"{name}-{stage}" / f"{stage}.log" for processes in (1, 2)]
        alone, together = ([ast.literal_eval(line) for line in log.read_text().splitlines()] for log in logs)
        assert len(alone) == len(together) == 3  # two steps and the closing line
        for line, other in zip(alone[:-1], together[:-1], strict=True):
            assert other["loss"] == pytest.approx(line["loss"], abs=1.5e-4), (name, stage)
            assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=2e-3), (name, stage)


def test_the_division_closed_knows_none(trained, parts, conversations, tmp_path):
    with pytest.raises(UserError, match="the strategy neftune is for the division open"):
        finetune(
            parts,
            conversations,
            trained / "pretrain" / "mm_projector.bin",
            tmp_path,
            "closed",
            strategy="neftune",
        )


def test_a_teacher_and_distillation_go_together(tmp_path):
    for name, teacher in (("distillation", None), ("neftune", tmp_path), (None, tmp_path)):
        with pytest.raises(UserError, match="distillation and a teacher go together"):
            registry.chosen(name, 1, teacher)
    assert type(registry.chosen(None, 1, None)) is Strategy


@pytest.mark.numerics
def test_noise_does_not_depend_on_padding_and_passes(tiny):
    samples = numbered(tiny[0], 4)
    samples[1] = replace(samples[1], input_ids=samples[1].input_ids[:-9], labels=samples[1].labels[:-9])
    loss, expected = gradients(tiny, samples, NEFTune(7))
    for tokens in (1, 250):
        other, noisy = gradients(tiny, samples, NEFTune(7), tokens)
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in noisy.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-4, atol=1e-6 * expected[name].abs().max().item()
            )
    plain = gradients(tiny, samples, Strategy(7))[0]
    others = [gradients(tiny, samples, NEFTune(seed), step=step)[0] for seed, step in ((7, 4), (8, 3))]
    assert len({plain, loss, *others}) == 4


def test_noise_is_as_large_as_stated(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(tiny[0]), "loss", lambda self, embeds, *_: seen.append(embeds.detach()) or embeds.sum()
    )
    samples = numbered(tiny[0], 1)
    for strategy in (Strategy(1), NEFTune(1)):
        gradients(tiny, samples, strategy)
    noise = seen[1] - seen[0]
    _, length, width = noise.shape
    bound = 5 / (length * width) ** 0.5 * width**0.5  # Gemma scales embeddings by the root of their width
    assert 0.95 * bound < noise.abs().max() <= bound * 1.0001
    assert noise.std() == pytest.approx(bound / 3**0.5, rel=0.03)


def outset(losses: list[float], steps: int = 10, batch: int = 5) -> Outset:
    def plain(epoch: int) -> list[int]:
        return numpy.random.default_rng(epoch).permutation(len(losses)).tolist()

    return Outset(steps, batch, plain, lambda: losses)


def test_a_curriculum_shows_every_row_once_and_the_easiest_first():
    losses = numpy.random.default_rng(0).random(50).tolist()
    order = Curriculum(1).order(outset(losses))
    assert sorted(order) == list(range(50)) and order != Curriculum(2).order(outset(losses))
    rank = numpy.argsort(numpy.argsort(losses))
    assert set(rank[order[:5]]) == set(range(5))
    for step in range(10):
        shown = max(5 * (step + 1), int((step / 10 * (1 - 1e-4) + 1e-4) ** 0.5 * 50))
        assert rank[order[: 5 * (step + 1)]].max() < shown
    assert rank[order[:25]].mean() < rank[order[25:]].mean()


def test_rows_without_labels_are_the_hardest(parts, conversations, tmp_path, tiny):
    rows = json.loads(conversations.samples.read_text())[:6]
    rows[2]["conversations"][1]["value"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = load_tokenizer(parts.llm, 256)
    dataset = Conversations(tmp_path / "rows.json", conversations.images, tokenizer, tiny[0].mgm, "gemma")
    losses = row_losses(tiny[0], dataset, CPU)
    assert len(losses) == 6 and all(loss > 0 for loss in losses) and tiny[0].training
    sample = dataset[1]
    row = expanded(tiny[0], sample)
    loss = Stepper(*tiny, Execution(1000), CPU).run([sample], 1, 1).item()
    tiny[1].discard()
    assert losses[1] == pytest.approx(loss, rel=1e-5) and row.predictions > 0


def items(model, count: int) -> list[Item]:
    samples = numbered(model, count)
    for number, sample in enumerate(samples):  # of several lengths
        cut = sample.labels[: len(sample.labels) - number], sample.input_ids[: len(sample.labels) - number]
        samples[number] = replace(sample, labels=cut[0], input_ids=cut[1])
    rows = [expanded(model, sample) for sample in samples]
    return [Item(*parts) for parts in zip(samples, rows, shares(rows, 1, count), strict=True)]


def test_drawn_rows_weigh_so_that_the_mean_stays(tiny):
    group = items(tiny[0], 6)
    losses = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    draws = [Importance(seed).draw(group, 3, lambda group: losses) for seed in range(4000)]
    assert {len(drawn) for drawn in draws} == {2}
    counts = numpy.zeros(6)
    for drawn in draws:
        for item in drawn:
            counts[item.sample.index] += item.weight / group[item.sample.index].weight
    # on average a row's weight is the plain one; a row of loss 0 is never drawn
    assert counts[0] == 0 and counts[1:] / 4000 == pytest.approx([1] * 5, abs=0.1)
    frequent = numpy.bincount([item.sample.index for drawn in draws for item in drawn], minlength=6) / 8000
    assert frequent == pytest.approx([loss / 15 for loss in losses], abs=0.02)
    assert len(Importance(1).draw(group, 3, lambda group: [0.0] * 6)) == 2


def test_candidates_are_taken_by_their_present_loss(tiny):
    model, optimizer = tiny
    stepper = Stepper(model, optimizer, Execution(10**6), CPU, Importance(1))
    seen = []
    stepper.strategy.draw = lambda group, step, losses: seen.append((group, losses(group))) or group[:2]
    loss = stepper.run(numbered(model, 12), 2, 2, 0).item()
    optimizer.discard()
    assert [len(group) for group, _ in seen] == [6, 6] and stepper.rows == 4
    group, losses = seen[0]
    expected = sum(loss * item.weight for loss, item in zip(losses[:2], group, strict=False))
    expected += sum(loss * item.weight for loss, item in zip(seen[1][1][:2], seen[1][0], strict=False))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_that_of_the_distributions():
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(count, 8, generator=generator) for count in (5, 40))
    weights = torch.rand(5, generator=generator)
    teacher = torch.randn(5, 40, generator=generator).softmax(-1)
    shares, tokens = teacher.topk(32)
    shares = shares / shares.sum(-1, keepdim=True)
    full = torch.zeros_like(teacher).scatter(1, tokens, shares)
    student = (hidden @ head.T).log_softmax(-1)
    expected = (torch.nn.functional.kl_div(student, full, reduction="none").sum(-1) * weights).sum()
    divergence = distillation.divergence(hidden, head, tokens, shares, weights)
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
    likeliest = distillation.likeliest(hidden, head, torch.zeros(5, dtype=torch.long))
    assert likeliest.shape == (5, 64) and torch.equal(likeliest[:, :32].long(), student.topk(32).indices)
    torch.testing.assert_close(likeliest[:, 32:].sum(-1), torch.ones(5))


def test_the_teacher_looks_once(trained, taught, parts, conversations, tmp_path, monkeypatch):
    loaded, load = [], distillation.load_checkpoint
    monkeypatch.setattr(distillation, "load_checkpoint", lambda *given: loaded.append(given) or load(*given))
    monkeypatch.setattr(distillation, "CACHE", tmp_path / "caches")
    projector = trained / "pretrain" / "mm_projector.bin"
    for seed in (1, 2):
        work = job(parts, conversations, tmp_path / str(seed), seed, **how("distillation", taught))
        stages.finetune(work, projector, stages.Lora(4, 8, 0.0, "full"))
    assert len(loaded) == 1
    (kept,) = (tmp_path / "caches").iterdir()
    tensors = load_file(kept)
    assert tensors["tokens"].shape == (tensors["counts"].sum(), distillation.TOP)
    record = json.loads((tmp_path / "2" / "run.json").read_text())
    assert record["inputs"]["teacher"]["sha256"] == sha256(taught.teacher / "merge.json")
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged: delete it, the teacher looks again"):
        stages.finetune(work, projector, stages.Lora(4, 8, 0.0, "full"))


def test_a_teacher_that_reads_other_tokens_or_images_is_refused(captions, tiny, parts, llama_parts):
    def compared(teacher, folder: Path) -> None:
        distillation.assert_comparable(teacher, tiny[0], captions, folder)

    compared(tiny[0], parts.llm)
    with pytest.raises(UserError, match=r"llama.* reads other tokens or images"):
        compared(tiny[0], llama_parts.llm)
    mgm = replace(tiny[0].mgm, image_size_aux=256)
    other = SimpleNamespace(config=tiny[0].config, tokens_per_image=tiny[0].tokens_per_image, mgm=mgm)
    with pytest.raises(UserError, match="reads other tokens or images"):
        compared(other, parts.llm)


@pytest.fixture
def captions(parts, conversations, tmp_path, tiny):
    """40 rows with a caption of their own and an image each."""
    rows = [row for row in json.loads(conversations.samples.read_text()) if "image" in row][:40]
    for number, row in enumerate(rows):
        row["conversations"][1]["value"] = f"caption {number}"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = load_tokenizer(parts.llm, 256)
    return Conversations(tmp_path / "rows.json", conversations.images, tokenizer, tiny[0].mgm, "gemma")


def test_hard_negatives_ask_about_the_most_similar_image(captions, tiny, monkeypatch):
    before, views = list(captions.rows), torch.eye(40)
    views[:, 0] = 0.1
    views[7, 0], views[7, 7] = 1.0, 0.0  # like all others
    monkeypatch.setattr(hard_negatives, "image_features", lambda *_: views)
    monkeypatch.setattr(hard_negatives, "CANDIDATES", 40)
    HardNegatives(3).prepare(tiny[0], captions, CPU)
    exchanged = [place for place, row in enumerate(captions.rows) if row != before[place]]
    assert len(captions.rows) == 40 and len(exchanged) == 10
    answers = [captions.rows[place]["conversations"][1]["value"] for place in exchanged]
    assert answers == ["yes", "no"] * 5
    for place, answer in zip(exchanged, answers, strict=True):
        row, old = captions.rows[place], before[place]
        assert old["conversations"][1]["value"] in row["conversations"][0]["value"]
        assert (row["image"] == old["image"]) == (answer == "yes")
        if answer == "no" and place != 7:
            assert row["image"] == before[7]["image"]
    sample = captions[exchanged[0]]
    assert sum(label != IGNORE_INDEX for label in sample.labels) > 0


def test_clip_tells_images_apart(captions, tiny):
    views = hard_negatives.image_features(tiny[0], captions, CPU)
    assert views.shape == (40, tiny[0].mgm.clip["hidden_size"])
    torch.testing.assert_close(views.norm(dim=1), torch.ones(40))
    assert (views @ views.T).fill_diagonal_(0).max() < 1


def test_a_template_without_questions_has_no_hard_negatives(captions, tiny):
    captions.read = replace(captions.read, template="plain")
    with pytest.raises(UserError, match="plain drops questions"):
        HardNegatives(3).prepare(tiny[0], captions, CPU)


def test_layers_join_from_the_last_and_text_comes_late(tiny):
    strategy = Progressive(1)
    rows = [{"image": "x"}] * 300 + [{}] * 100
    strategy.prepare(tiny[0], SimpleNamespace(rows=rows), CPU)
    assert strategy.part("model.layers.2.mlp.up_proj.lora_A.default.weight") == "2"
    assert strategy.part("model.mm_projector.0.weight") == strategy.part("model.vlm_uni.layers.0.x") == ""
    joined = [[strategy.factors(done)[layer] for layer in "012"] for done in (0, 0.17, 0.34, 1)]
    assert joined == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]
    order = strategy.order(outset([0.0] * 400))
    assert sorted(order) == list(range(400))
    texts = [sum(place >= 300 for place in part) for part in numpy.split(numpy.array(order), 4)]
    assert texts == sorted(texts) and texts[0] < 12 and texts[-1] > 35


def test_small_images_come_first_and_the_memory_is_planned_for_whole_ones(tiny, monkeypatch):
    model, strategy, seen = tiny[0], Resolution(1), []
    maps = model.aux_maps
    monkeypatch.setattr(model, "aux_maps", lambda images: seen.append(images.shape[-1]) or maps(images))
    strategy.prepare(model, SimpleNamespace(), CPU)
    strategy.order(outset([0.0] * 16))
    steps = outset([0.0] * 16).steps
    for step in (0, steps // 2 - 1, steps // 2, steps - 1, None):
        gradients(tiny, numbered(model, 4), strategy, step=step)
    assert seen == [64, 64, 128, 128, 128]
    odd = SimpleNamespace(mgm=model.mgm.with_(image_size_aux=32 * 5))
    with pytest.raises(UserError, match="image_size_aux is 80"):
        strategy.prepare(odd, SimpleNamespace(), CPU)


def test_a_part_learns_at_its_own_rate():
    parameters = {name: torch.nn.Parameter(torch.ones(3, 3)) for name in ("a.x", "b.x")}
    optimizer = AdamW(parameters, 0.0, 1.0, CPU, part=lambda name: name[0])
    for parameter in parameters.values():
        parameter.grad = torch.ones(3, 3)
    optimizer.step(0.1, {"a": 0.0})
    assert torch.equal(parameters["a.x"], torch.ones(3, 3)) and parameters["b.x"].max() < 1


def test_a_frozen_layer_stays_as_it_was(trained, parts, conversations, tmp_path, monkeypatch):
    monkeypatch.setattr(Progressive, "factors", lambda self, done: {"0": 0.0})
    projector = trained / "pretrain" / "mm_projector.bin"
    finetune(parts, conversations, projector, tmp_path, strategy="progressive")
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    moved = {
        name.split(".layers.")[1].split(".")[0]
        for name, value in adapter.items()
        if "lora_B" in name and value.any()
    }
    assert "0" not in moved and len(moved) >= 1
