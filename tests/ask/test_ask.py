"""The answers to questions by hand: those of the evaluation, from every kind of folder."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_training
import torch
from PIL import Image

from toolkit.__main__ import main
from toolkit.ask import MGM
from toolkit.benchmarks import BENCHMARKS, TEXTVQA
from toolkit.errors import UserError
from toolkit.files import write_json, write_jsonl
from toolkit.mgm.answer import Text
from toolkit.mgm.nucleus import Sampling
from toolkit.train.inputs import BaseModels

NEW = 8


@pytest.fixture(scope="module")
def trained(parts, conversations, tmp_path_factory):
    """A LoRA finetuning, merged: .folder, .base, .flags; .questions (image, text), .answers by `evaluate`."""
    root = tmp_path_factory.mktemp("trained")
    tiny_training.pretrain(parts, conversations, root / "pretrain")
    folder = root / "MGM-Tiny-Finetune-asked"
    tiny_training.finetune(parts, conversations, root / "pretrain/mm_projector.bin", folder)
    assert tiny_training.merge(parts, folder) == 0
    rows, entries, random = [], [], np.random.default_rng(0)
    for number in range(10):
        shape = (*random.integers(40, 90, 2), 3)
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(root / f"{number}.png")
        question = f"{'what is this ' * number}{number}?"
        text = f"{question}\nReference OCR token: a\nAnswer."
        rows.append({"question_id": number, "image": f"{number}.png", "text": text})
        entries.append({"image_id": number, "question": question, "answers": ["2"] * 10})
    write_jsonl(root / "Q.jsonl", rows)
    write_json(root / "A.json", {"data": entries})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "textvqa", replace(TEXTVQA, max_new_tokens=NEW))
        paths = ["--questions", root / "Q.jsonl", "--images", root, "--annotations", root / "A.json"]
        arguments = ["evaluate", "textvqa", "--model", folder, *paths, "--output", root / "scored"]
        assert main([str(part) for part in arguments]) == 0
    answers = [json.loads(line)["text"] for line in (root / "scored/bm1.jsonl").read_text().splitlines()]
    flags = ["--llm", str(parts.llm), "--clip", str(parts.clip), "--convnext", str(parts.convnext)]
    questions = [(root / row["image"], row["text"]) for row in rows]
    base = BaseModels(parts.llm, parts.clip, parts.convnext)
    return SimpleNamespace(folder=folder, base=base, flags=flags, questions=questions, answers=answers)


@pytest.fixture(scope="module")
def model(trained):
    return MGM.load(trained.folder, device="cpu", batch_size=4)


def kit_adapter(folder, target, *records):
    """The LoRA folder as the kit's code writes it: PEFT's whole configuration, no record, no merge."""
    target.mkdir()
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin", "config.json", *records):
        (target / name).write_bytes((folder / name).read_bytes())
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"auto_mapping": None, "fan_in_fan_out": False, "init_lora_weights": True, "loftq_config": {}}
    settings |= {"megatron_core": "megatron.core", "use_rslora": False, "rank_pattern": {}, "revision": None}
    settings["target_modules"] = ["q_proj", "o_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    write_json(target / "adapter_config.json", settings)
    return target


def test_answers_are_those_of_the_evaluation(trained, model, tmp_path):
    assert len(set(trained.answers)) > 5
    assert list(model.answers(trained.questions, NEW)) == trained.answers
    image, text = trained.questions[3]
    assert model.answer(image, text, NEW) == trained.answers[3]
    assert model.answer(Image.open(image), text, NEW) == trained.answers[3]
    merged = MGM.load(trained.folder / "merged", device="cpu")
    assert list(merged.answers(trained.questions, NEW)) == trained.answers
    lora = kit_adapter(trained.folder, tmp_path / "lora", "run.json")
    adapted = MGM.load(lora, trained.base, device="cpu")
    assert list(adapted.answers(trained.questions, NEW)) == trained.answers
    for name, parameter in model.answerer.model.named_parameters():
        assert torch.equal(parameter, adapted.answerer.model.get_parameter(name)), name
    # float16 files are trained in bfloat16, unless a record says that they are the embedded world's
    half = MGM.load(kit_adapter(trained.folder, tmp_path / "half"), trained.base, device="cpu")
    for name, parameter in model.answerer.model.named_parameters():
        close = half.answerer.model.get_parameter(name)
        assert torch.allclose(parameter, close, rtol=2**-7, atol=1e-3), name


def test_four_bits_are_those_of_the_full_weights_and_take_less_memory(trained, model):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    small = MGM.load(trained.folder, device="cpu", batch_size=4, quantize="nf4")
    layers = {
        name: layer for name, layer in small.answerer.model.named_modules() if isinstance(layer, Linear4bit)
    }
    assert len(layers) == 7 * model.answerer.model.config.num_hidden_layers
    for name, layer in layers.items():
        full = model.answerer.model.get_submodule(name).weight
        close = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        # each block of 64 is scaled by its largest weight, and no level is further than 0.152 of it
        scale = full.reshape(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(full.shape)
        assert ((close - full).abs() <= 0.16 * scale).all() and not torch.equal(close, full)
        assert layer.weight.data.nbytes * 8 == full.nbytes
    alone = [small.answer(image, text, NEW) for image, text in trained.questions]
    assert list(small.answers(trained.questions, NEW)) == alone


def test_what_cannot_be_quantised_or_shown_is_refused(trained, tmp_path, monkeypatch, capsys):
    command = ["ask", "--model", str(trained.folder), "what?"]
    images = [flag for image, _ in trained.questions[:2] * 40 for flag in ("--image", str(image))]
    assert main([*command, *images]) == 1
    assert "80 images take" in capsys.readouterr().err
    with pytest.raises(UserError, match="'int8' is unknown: nf4 is what"):
        MGM.load(trained.folder, quantize="int8")
    monkeypatch.setattr("toolkit.ask.folder.find_spec", lambda name: None)
    assert main([*command, "--quantize", "nf4"]) == 1
    assert "4-bit weights need the package bitsandbytes" in capsys.readouterr().err


def test_the_order_is_that_of_the_questions_and_an_image_may_be_absent(trained, model):
    image, text = trained.questions[1]
    questions = [(None, "what?"), (image, text), (Image.open(image), text), (None, "what is it? " * 9)]
    alone = [model.answer(image, text, NEW) for image, text in questions]
    assert alone[1] == alone[2] == trained.answers[1]
    assert list(model.answers(questions, NEW)) == alone


def test_pieces_make_up_the_answer(trained, model):
    for (image, text), answer in zip(trained.questions, trained.answers, strict=True):
        pieces = list(model.stream(image, text, NEW))
        assert "".join(pieces) == answer and all(pieces)


class Decoder:
    """A tokenizer whose ids are bytes and which drops spaces before marks."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode(errors="replace").replace(" .", ".").replace(" n't", "n't")


@pytest.mark.parametrize("answer", ["  It's a é 字 , do n't . ", "été", "", "a\n\n b ", "字字字", "a b c d"])
def test_a_piece_is_never_taken_back(answer):
    ids = list(answer.encode())
    text, pieces = Text(Decoder()), []
    for end in range(1, len(ids) + 1):
        pieces.append(text.more(ids[:end], False))
    pieces.append(text.more(ids, True))
    assert "".join(pieces) == Decoder().decode(ids, True).strip()
    if answer == "字字字":  # it does not wait for a space
        assert [piece for piece in pieces if piece] == ["字", "字", "字"]


def test_drawing_follows_seed_temperature_and_nucleus(trained, model):
    image, text = trained.questions[0]
    draws = [model.answer(image, text, NEW, Sampling(1.5, seed=seed)) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) == 3
    assert model.answer(image, text, NEW, Sampling(2.0, top_p=1e-9, seed=1)) == trained.answers[0]
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)):
        draw = Sampling(top_p=top_p, seed=0).drawer()
        tokens = torch.tensor([draw(shares.log()) for _ in range(2000)])
        seen = torch.bincount(tokens, minlength=4) / 2000
        expected = torch.where(torch.arange(4) < kept, shares, 0)
        assert (seen - expected / expected.sum()).abs().max() < 0.04
    assert Sampling(5e-324, seed=0).drawer()(shares.log()) == 0  # it made infinities of the logits
    with pytest.raises(UserError, match="temperature is 3"):
        Sampling(3)


def test_the_command(trained, model, monkeypatch, capsys, tmp_path):
    image, text = trained.questions[2]
    command = ["ask", "--model", str(trained.folder), "--max-new-tokens", str(NEW)]
    assert main([*command, "--image", str(image), text, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == trained.answers[2] + "\n"
    assert main([*command, "--image", str(image), text, "--temperature", "0", "--top-p", "7"]) == 1
    assert "top_p 7" in capsys.readouterr().err
    images = [str(image) for image, _ in trained.questions[:2]]
    assert main([*command, "--image", images[0], "--image", images[1], text]) == 0
    about_two = capsys.readouterr().out.removesuffix("\n")
    assert about_two == model.answer(images, text, NEW) != model.answer(images[::-1], text, NEW)
    lines = [json.dumps({"image": str(image), "question": text}) for image, text in trained.questions]
    lines.append(json.dumps({"image": images, "question": text}))
    stdin = SimpleNamespace(buffer=io.BytesIO("\n".join(lines).encode()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    lora = kit_adapter(trained.folder, tmp_path / "lora", "run.json")
    command[2] = str(lora)
    assert main([*command, "--batch-size", "3", *trained.flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["answer"] for row in rows] == [*trained.answers, about_two]
    assert [row["question"] for row in rows] == [*(text for _, text in trained.questions), text]
    assert main([*command, "what?"]) == 1
    assert "holds a LoRA adapter alone" in capsys.readouterr().err
    assert main([*command, "--llm", "x", "what?"]) == 1
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "a", "question": "b"}', "line 2 is not valid JSON: the key question is there twice"),
        ('{"image": null}', "line 2 is not an object of question and image"),
        ('{"question": 3}', "line 2: question must be a text"),
        ('{"image": "absent.jpg", "question": "What?"}', "line 2: there is no image absent.jpg"),
        ('{"question": "a", "image": ["b", null]}', "image the path of a file, a list of paths or null"),
        ('{"question": "a", "image": 0}', "image the path of a file, a list of paths or null"),
        ('{"question": "a", "image": ""}', "image the path of a file, a list of paths or null"),
        ('{"question": "a", "picture": "b"}', "line 2 is not an object of question and image"),
    ],
)
def test_a_bad_line_is_named_before_the_model_is_loaded(line, problem, monkeypatch, capsys):
    buffer = io.BytesIO(f'{{"question": "what?"}}\n{line}\n'.encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: False))
    assert main(["ask", "--model", "nowhere"]) == 1
    assert problem in capsys.readouterr().err


def test_what_cannot_be_read_is_one_sentence(trained, model, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png cannot be read as an image: it is none of JPEG"):
        model.answer(tmp_path / "bad.png", "what?")
    with pytest.raises(UserError, match=r"absent\.png cannot be read as an image: No such file"):
        list(model.answers([(tmp_path / "absent.png", "what?")]))
    with pytest.raises(UserError, match="contains <image>"):
        model.answer(None, "what is <image>?")
    long = "what is it? " * 2000
    with pytest.raises(UserError, match=r"has \d+ tokens, the model reads \d+: ask a shorter one"):
        model.answer(None, long)
    with pytest.raises(UserError, match="ask a shorter one"):
        list(model.answers([(None, "what?"), (None, long)]))
    with pytest.raises(UserError, match="holds no adapter_config"):
        MGM.load(trained.folder / "merged", trained.base)
    assert main(["ask", "--model", str(tmp_path / "nothing"), "what?"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    lora = kit_adapter(trained.folder, tmp_path / "lora")
    settings = json.loads((lora / "adapter_config.json").read_text())
    write_json(lora / "adapter_config.json", settings | {"use_rslora": True})
    with pytest.raises(UserError, match="use_rslora is True: only plain LoRA is read"):
        MGM.load(lora, trained.base)
