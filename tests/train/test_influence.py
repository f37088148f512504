"""Influence: gradients as autograd gives them, what one step of SGD does, the command and its errors."""

import json

import pytest
import torch
from tiny_training import job, pretrain

from toolkit import scales
from toolkit.__main__ import main
from toolkit.bench import synthetic
from toolkit.benchmarks import BENCHMARKS
from toolkit.files import read_jsonl, write_json
from toolkit.mgm.checkpoint import load_projector
from toolkit.mgm.labelled import mixed
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train.dataset import Conversations
from toolkit.train.influence import benchmark_gradient, flat, row_gradients, summarised, trained
from toolkit.train.right_answers import right_answers
from toolkit.train.stages import prepare
from toolkit.train.step import assembled, expanded
from toolkit.train.strategies.base import Item
from toolkit.world.build import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {"cpu": (1e-3, 1e-5), "cuda": (2e-2, 2e-2)}[DEVICE.type]  # bf16 on a GPU
ASKED = ["textvqa", "mmbench"]


def whole_loss(model, items: list[Item]) -> torch.Tensor:
    with mixed(DEVICE):
        part = assembled(model, items, DEVICE)
        return model.loss(part.embeds, part.layout, part.positions, part.targets, part.weights)


@pytest.mark.numerics
def test_a_rows_gradient_is_that_of_its_loss_alone():
    model = synthetic.model("tiny", torch.float32, DEVICE)
    parameters = list(trained(model).values())
    samples = synthetic.samples("pretrain", 3, model.mgm, 0)
    samples[1] = type(samples[1])(samples[1].input_ids[:-9], samples[1].labels[:-9], samples[1].pixels)
    items = [Item(sample, expanded(model, sample), 1.0) for sample in samples]
    together = list(row_gradients(model, parameters, items, DEVICE))
    assert len(together) == 3
    for item, gradient in zip(items, together, strict=True):
        alone = torch.autograd.grad(whole_loss(model, [item]), parameters, materialize_grads=True)
        expected = flat(alone)
        assert expected.norm() > 0
        torch.testing.assert_close(
            gradient, expected, rtol=CLOSE[0], atol=CLOSE[1] * expected.abs().max().item()
        )


@pytest.fixture(scope="module")
def project(parts, conversations, tmp_path_factory):
    """A pretraining of 60 rows, questions of the world, and the command's arguments but --output."""
    root = tmp_path_factory.mktemp("influence")
    pretrain(parts, conversations, root / "pretrained")
    build("development", root / "questions", 5, 4)
    arguments = {"samples": conversations.samples, "images": conversations.images}
    arguments |= {"pretrained": root / "pretrained", "questions": root / "questions"}
    return root, arguments | {"llm": parts.llm, "clip": parts.clip, "convnext": parts.convnext}


def run(arguments, output) -> int:
    flags = [text for name, path in arguments.items() for text in (f"--{name}", str(path))]
    return main(["data", "influence", *flags, "--output", str(output)])


@pytest.fixture(scope="module")
def rows(project):
    root, arguments = project
    assert run(arguments, root / "out") == 0
    return list(read_jsonl(root / "out/influence.jsonl"))


def test_each_row_has_its_influence_on_each_benchmark(project, conversations, rows):
    samples = json.loads(conversations.samples.read_text())
    assert [row["id"] for row in rows] == [sample["id"] for sample in samples]
    assert [row["caption"] for row in rows] == [sample["conversations"][1]["value"] for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert list(row["influence"]) == ASKED
        # a row of text does not touch what pretraining trains
        assert all((value != 0) == ("image" in sample) for value in row["influence"].values())
    summary = json.loads((project[0] / "out/influence.json").read_text())
    textvqa = [row["influence"]["textvqa"] for row in rows]
    part = summary["benchmarks"]["textvqa"]
    assert (
        summary["rows"] == 60
        and part["questions"] == 4
        and summary["benchmarks"]["mmbench"]["questions"] == 12
    )
    assert part["hurt"] == pytest.approx(sum(value < 0 for value in textvqa) / 60)
    ends = {
        side: [row["influence"]["textvqa"] for row in part[side]] for side in ("helped_most", "hurt_most")
    }
    assert ends["helped_most"] == sorted((value for value in textvqa if value > 0), reverse=True)[:5]
    assert ends["hurt_most"] == sorted(value for value in textvqa if value < 0)[:5]


def test_rows_that_hurt_helped_nothing():
    lines = [
        {"id": str(number), "influence": {"textvqa": value}} for number, value in enumerate((-2, 1, 0, -1))
    ]
    part = summarised(lines, {"textvqa": 5})["textvqa"]
    assert [line["id"] for line in part["helped_most"]] == ["1"]
    assert [line["id"] for line in part["hurt_most"]] == ["0", "3"] and part["hurt"] == 0.5


@pytest.mark.numerics
@pytest.mark.skipif(
    DEVICE.type == "cuda", reason="in bf16 a loss is rounded by more than such a step changes it"
)
def test_influence_is_what_a_small_step_of_sgd_on_the_row_does(project, parts, conversations, rows):
    root, _ = project
    scale = scales.load("tiny")
    model, _, dtype = prepare(job(parts, conversations, root / "x", scale=scale), scale.pretrain)
    load_projector(model, root / "pretrained/mm_projector.bin", dtype)
    parameters = list(trained(model).values())
    tokenizer = load_tokenizer(parts.llm, scale.model_max_length)
    asked = right_answers(root / "questions", tokenizer, model.mgm, scale)
    items = {
        name: [
            Item(sample, row, 1 / (row.predictions * len(samples)))
            for sample in samples
            for row in [expanded(model, sample)]
        ]
        for name, part in asked.items()
        for samples in [list(part)]
    }
    start = [parameter.detach().clone() for parameter in parameters]
    before = {name: whole_loss(model, part).item() for name, part in items.items()}
    dataset = Conversations(conversations.samples, conversations.images, tokenizer, model.mgm, scale.template)
    largest = sorted(range(60), key=lambda place: -abs(rows[place]["influence"]["textvqa"]))[:4]
    rate = 2e-5
    for place in largest:
        sample = dataset[place]
        loss = whole_loss(model, [Item(sample, expanded(model, sample), 1.0)])
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
            for name, part in items.items():
                fall = before[name] - whole_loss(model, part).item()
                assert fall == pytest.approx(rate * rows[place]["influence"][name], rel=0.15, abs=3e-6), (
                    place,
                    name,
                )
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)


def test_the_same_bytes_again(project, rows):
    root, arguments = project
    assert run(arguments, root / "again") == 0
    for name in ("influence.jsonl", "influence.json", "influence.md"):
        assert (root / "again" / name).read_bytes() == (root / "out" / name).read_bytes()


def test_the_mean_over_questions_has_the_gradient_of_their_mean_loss(project, parts, conversations):
    root, _ = project
    scale = scales.load("tiny")
    model, *_ = prepare(job(parts, conversations, root / "x", scale=scale), scale.pretrain)
    parameters = list(trained(model).values())
    tokenizer = load_tokenizer(parts.llm, scale.model_max_length)
    asked = right_answers(root / "questions", tokenizer, model.mgm, scale)["mmbench"]
    gradient, count = benchmark_gradient(model, parameters, asked, DEVICE)
    losses = []
    for sample in asked:
        row = expanded(model, sample)
        losses.append(whole_loss(model, [Item(sample, row, 1 / row.predictions)]))
    expected = flat(torch.autograd.grad(sum(losses) / len(losses), parameters, materialize_grads=True))
    assert count == len(losses) == 12
    torch.testing.assert_close(
        gradient, expected, rtol=CLOSE[0], atol=10 * CLOSE[1] * expected.abs().max().item()
    )


def test_right_answers_are_letters_and_what_most_people_said(project):
    root, _ = project
    for name in ASKED:
        benchmark = BENCHMARKS[name]
        files = benchmark.official_files(root / "questions" / name, root)
        asked = benchmark.questions(files)
        answers = benchmark.right_answers(files, asked)
        assert sorted(answers) == list(range(len(asked)))
        if name == "mmbench":
            for place, letter in answers.items():
                index = asked[place].head["question_id"]
                text = benchmark.references(files, asked)[str(index % 1_000_000)].right[0]
                assert f"\n{letter}. {text}\n" in asked[place].message
        else:
            humans = benchmark.references(files, asked).values()
            assert [answers[part.places[0]] for part in humans] == [
                max(part.right, key=part.right.count) for part in humans
            ]


def test_what_cannot_be_computed_is_said(project, tmp_path, capsys):
    _, arguments = project
    assert run(arguments | {"questions": tmp_path / "none"}, tmp_path / "out") == 1
    assert "none has no folder with official files of a benchmark, named textvqa" in capsys.readouterr().err
    assert run(arguments | {"pretrained": tmp_path}, tmp_path / "out") == 1
    assert "run.json" in capsys.readouterr().err
    assert run(arguments | {"clip": arguments["llm"]}, tmp_path / "out") == 1
    assert "was trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_questions_of_the_evaluation_are_warned_of(project, tmp_path, capsys):
    _, arguments = project
    write_json(tmp_path / "manifest.json", {"asset": "world-evaluation"})
    assert run(arguments | {"questions": tmp_path}, tmp_path / "out") == 1
    assert "chooses them by the test" in capsys.readouterr().err
