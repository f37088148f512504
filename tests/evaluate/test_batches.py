"""Answers of a real (tiny, random) model: those of transformers' generation one by one, whatever stands
beside a question."""

import json
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from proved import prove

from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS, TEXTVQA
from toolkit.errors import UserError
from toolkit.files import write_json, write_jsonl
from toolkit.mgm import checkpoint, generate
from toolkit.mgm.answer import Answerer
from toolkit.mgm.nucleus import Sampling
from toolkit.mgm.parity import Golden, until_end
from toolkit.mgm.processor import pixels, preprocess
from toolkit.mgm.room import Need
from toolkit.mgm.text import question_prompt, tokenize
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train.memory import GIB, SIZES

pytestmark = pytest.mark.numerics
GOLDEN = Path(__file__).parents[1] / "golden" / "mgm"
WORDS = [
    "what",
    "is",
    "this",
    "the",
    "red",
    "blue",
    "image",
    "or",
    "answer",
    "2",
    "+",
    "it",
    "of",
    "a",
    "dog",
    "describe",
]
NEW = 8


def merged(parts, folder, twins):
    """A finetuning folder of a random model. With `twins` every other token has one whose weights differ by
    rounding alone."""
    mgm = checkpoint.build(parts.llm, parts.clip, parts.convnext, seed=4, image_size_aux=128)
    with torch.no_grad():
        weight = mgm.lm_head.weight
        if twins:
            other = torch.where(
                torch.rand(weight[2::2].shape, generator=torch.Generator().manual_seed(1)) < 0.5,
                torch.inf,
                -torch.inf,
            )
            weight[3::2] = torch.nextafter(weight[2::2], other)
    checkpoint.save_checkpoint(mgm, folder / "merged", load_tokenizer(parts.llm, 256))
    prove(folder)
    return folder


# two processes on the CPU, forked from one that has not computed yet
SHARED = f"""
import sys
from dataclasses import replace
from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS
from toolkit.evaluate import shards
shards._devices = lambda gpus: [""] * gpus
BENCHMARKS["textvqa"] = replace(BENCHMARKS["textvqa"], max_new_tokens={NEW})
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(parts, tmp_path_factory):
    return merged(parts, tmp_path_factory.mktemp("models") / "MGM-Tiny-Finetune-plain", twins=False)


@pytest.fixture(scope="module")
def twins(parts, tmp_path_factory):
    """A model whose answers are full of near-ties."""
    return merged(parts, tmp_path_factory.mktemp("models") / "MGM-Tiny-Finetune-twins", twins=True)


@pytest.fixture(scope="module")
def asked():
    """40 questions of 1 to 25 words on 25 images: .messages, .names, .images."""
    random = np.random.default_rng(0)
    messages = [" ".join(random.choice(WORDS, int(random.integers(1, 26)))) for _ in range(40)]
    images = [
        Image.fromarray(random.integers(0, 255, (*random.integers(40, 90, 2), 3), dtype=np.uint8))
        for _ in range(25)
    ]
    return SimpleNamespace(
        messages=messages, images=images, names=[int(number) for number in random.integers(0, 25, 40)]
    )


def answers(model, asked, size, new=NEW, ahead=False):
    answerer = Answerer(model / "merged", "cpu", size)
    answerer.greedy.ahead = ahead
    texts = dict(
        answerer.stream(asked.messages, asked.names, lambda number: asked.images[asked.names[number]], new)
    )
    return [texts[number] for number in range(len(asked.messages))], answerer


def test_alone_is_what_transformers_generates(model, asked):
    texts, answerer = answers(model, asked, 1)
    mgm, tokenizer = answerer.model, answerer.tokenizer
    for message, name, text in zip(asked.messages[:12], asked.names, texts, strict=False):
        ids = torch.tensor([tokenize(question_prompt(message, "gemma"), tokenizer)])
        low, high = preprocess(asked.images[name], mgm.mgm)
        new = mgm.greedy(ids, None, low[None], high[None], NEW)
        assert tokenizer.decode(new[0], skip_special_tokens=True).strip() == text
    assert answerer.again == 0


@pytest.mark.parametrize("case", ["case_infer", "case_infer_two_images"])
def test_the_official_continuation(case):
    golden = Golden(GOLDEN)
    golden.model.set_attn_implementation("sdpa")
    spec, official = golden.meta["cases"][case], golden.load(case)["generated_ids"][0]
    prompt = generate.Prompt.of(tokenize(spec["prompt"], golden.tokenizer), "shown")
    assert prompt.images == len(spec["images"])
    images = np.stack([pixels(golden.image(name), golden.config) for name in spec["images"]])
    shown = images if len(images) > 1 else images[0]
    [(_, new)] = generate.Greedy(golden.model, 1).run([prompt], lambda _: shown, len(official))
    assert new == until_end(official.tolist(), golden.model.ends)


def test_answers_are_those_of_batch_size_one(model, asked):
    alone, _ = answers(model, asked, 1)
    assert len(set(alone)) > 20
    for size in (3, 16, 64):
        texts, answerer = answers(model, asked, size)
        assert texts == alone
        assert answerer.again < 4


def test_as_many_questions_at_once_as_a_gpu_has_memory_for(model, asked, monkeypatch, capsys):
    alone, _ = answers(model, asked, 1)
    _, whole = answers(model, asked, 16)
    need = Need(whole.greedy.columns, whole.greedy.token_bytes, whole.model.tokens_per_image)
    for room, fit in ((need.needed(5), 5), (need.needed(2) - 1, 1)):
        monkeypatch.setattr(generate.Greedy, "room", lambda self, room=room: room)
        texts, answerer = answers(model, asked, 16)
        assert texts == alone
        assert answerer.greedy.memory.keys() <= {fit, 1}
        assert f"memory holds {fit} of 16 questions at once" in capsys.readouterr().err


def test_what_a_question_takes_is_near_what_was_measured():
    """64 questions of 734 tokens with their answers: 10.9 GiB reserved (docs/performance.md)."""
    sizes = SIZES["2B"]
    need = Need(734, 2 * sizes.cached, 576)
    assert (2 * sizes.parameters + need.needed(64)) / GIB == pytest.approx(10.9, rel=0.03)


def test_what_rounding_may_decide_is_asked_again_alone(twins, asked, monkeypatch):
    alone, _ = answers(twins, asked, 1)
    for size in (3, 16):
        texts, answerer = answers(twins, asked, size)
        assert texts == alone
        assert answerer.again > 20
    monkeypatch.setitem(generate.ROUNDING, torch.float32, 0.0)
    assert answers(twins, asked, 16)[1].again == 0


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_step_that_is_launched_ahead_changes_no_answer(model, twins, asked, size):
    for folder in (model, twins):
        alone, _ = answers(folder, asked, 1)
        texts, answerer = answers(folder, asked, size, ahead=True)
        assert texts == alone
    assert (answerer.again > 20) == (size > 1)


def test_drawn_tokens_are_known_before_the_next_step(model, asked):
    """Some rows draw their tokens, each from its own seed, while others take the likeliest."""
    answerer = Answerer(model / "merged", "cpu", 4)

    def run(ahead, drawing=(1, 6, 11)):
        greedy = generate.Greedy(answerer.model, 4)
        greedy.ahead = ahead
        rows = []
        for number, (message, name) in enumerate(zip(asked.messages[:12], asked.names, strict=False)):
            picture = Future()
            picture.set_result(greedy.sent(pixels(asked.images[name], answerer.mgm)))
            draw = Sampling(1.0, 1.0, number).drawer() if number in drawing else None
            prompt = answerer.prompt(message, name)
            rows.append(generate.PromptState(number, prompt, picture, NEW, draw))
        waiting = iter(rows)
        for _ in greedy.follow(lambda free: list(islice(waiting, free)), 200):
            pass
        return [row.new for row in rows]

    drawn, likeliest = run(ahead=False), run(ahead=False, drawing=())
    assert [number for number in range(12) if drawn[number] != likeliest[number]] == [1, 6, 11]
    assert run(ahead=True) == drawn


def test_which_answers_rounding_can_lead_to(model, twins, asked):
    """The answer itself, and none but those that differ by near-ties."""
    for tree, several in ((model, False), (twins, True)):
        texts, answerer = answers(tree, asked, 16)
        for message, name, text in list(zip(asked.messages, asked.names, texts, strict=True))[:5]:
            image = asked.images[name]
            assert answerer.near(message, image, text, NEW, 1e-4)
            assert not answerer.near(message, image, f"{text} 2", NEW, 1e-4)
            prompt = answerer.prompt(message, 0)
            picture = pixels(image, answerer.model.mgm)
            reachable = list(answerer.greedy.near_ties(prompt, picture, NEW, 1e-4))
            assert (len(reachable) > 1) == several
            assert len(reachable) == len(set(map(tuple, reachable)))


def test_an_answer_ends_with_the_end_of_sequence(model, asked):
    answerer = Answerer(model / "merged", "cpu")
    mgm = answerer.model
    mgm.config.eos_token_id = None
    prompts = [
        answerer.prompt(message, name) for message, name in zip(asked.messages, asked.names, strict=True)
    ]

    def run(size, ahead=False):
        greedy = generate.Greedy(mgm, size)
        greedy.ahead = ahead
        return dict(
            greedy.run(prompts, lambda number: pixels(asked.images[asked.names[number]], mgm.mgm), NEW)
        )

    whole = run(1)
    assert {len(ids) for ids in whole.values()} == {NEW}
    end = whole[0][3]  # from now on this token ends an answer
    mgm.config.eos_token_id = end
    for size, ahead in ((1, False), (5, False), (5, True)):
        cut = run(size, ahead)
        assert cut == {number: ids[: ids.index(end)] if end in ids else ids for number, ids in whole.items()}
    assert len({len(ids) for ids in cut.values()}) > 1


def test_an_image_is_loaded_once(asked):
    prompts = [
        generate.Prompt((2,), tuple(range(len(m))), name)
        for m, name in zip(asked.messages, asked.names, strict=True)
    ]
    loaded = []
    rows = list(generate.prepared(prompts, lambda number: loaded.append(asked.names[number]), NEW))
    assert sorted(row.number for row in rows) == list(range(40))
    for row in rows:
        row.pixels.result()
    assert sorted(loaded) == sorted(set(asked.names))
    assert all(row.pixels is rows[0].pixels for row in rows if row.prompt.image == rows[0].prompt.image)


def test_questions_with_and_without_image_and_beyond_the_models_length(model, asked):
    answerer = Answerer(model / "merged", "cpu", 8)
    messages = [*asked.messages[:6], "what is it? " * 200]
    images = [*asked.images[:3], None, None, *asked.images[3:5]]
    alone = Answerer(model / "merged", "cpu", 1).answer(messages, images, NEW)
    assert answerer.answer(messages, images, NEW) == alone
    assert all(alone)
    with pytest.raises(UserError, match="contains <image>"):
        answerer.answer(["what is <image>?"], images[:1], NEW)


@pytest.mark.parametrize(("size", "ahead"), [(1, False), (5, False), (5, True)])
def test_several_images_in_one_question(model, asked, size, ahead):
    """What transformers generates of the same embeddings, beside questions about one image or none."""
    answerer = Answerer(model / "merged", "cpu", size)
    answerer.greedy.ahead = ahead
    mgm, tokenizer = answerer.model, answerer.tokenizer
    names = [(0, 1), 0, (1, 0), None, (2, 0, 1), (0, 1), (2,)]
    messages = asked.messages[: len(names)]

    def load(number):
        name = names[number]
        return asked.images[name] if name == 0 else [asked.images[place] for place in name]

    texts = [text for _, text in sorted(answerer.stream(messages, names, load, NEW))]
    for message, name, text in zip(messages, names, texts, strict=True):
        if isinstance(name, tuple):
            marked = "<image>\n" * (len(name) - 1) + message  # `question_prompt` adds another
            ids = torch.tensor([tokenize(question_prompt(marked, "gemma"), tokenizer)])
            low, high = zip(*(preprocess(asked.images[place], mgm.mgm) for place in name), strict=True)
            new = mgm.greedy(ids, None, torch.stack(low), torch.stack(high), NEW)
            assert tokenizer.decode(new[0], skip_special_tokens=True).strip() == text
    with pytest.raises(UserError, match="300 images take"):
        answerer.prompt("what?", tuple(range(300)))


def test_answer_files_are_equal_for_all_batch_sizes(twins, asked, tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "textvqa", replace(TEXTVQA, max_new_tokens=NEW))
    rows, entries = [], []
    for number, (message, name) in enumerate(zip(asked.messages[:20], asked.names, strict=False)):
        asked.images[name].save(tmp_path / f"{name}.png")
        question = f"{message} {number}?"
        text = f"{question}\nReference OCR token: a\nAnswer."
        rows.append({"question_id": name, "image": f"{name}.png", "text": text})
        entries.append({"image_id": name, "question": question, "answers": ["2"] * 10})
    write_jsonl(tmp_path / "Q.jsonl", rows)
    write_json(tmp_path / "A.json", {"data": entries})
    arguments = [
        "--model",
        twins,
        "--questions",
        tmp_path / "Q.jsonl",
        "--images",
        tmp_path,
        "--annotations",
        tmp_path / "A.json",
    ]
    for size in (1, 3, 16):
        output = ["--batch-size", size, "--output", tmp_path / f"{size}"]
        assert main(["evaluate", "textvqa", *(str(part) for part in [*arguments, *output])]) == 0
    shared = ["--batch-size", 3, "--gpus", 2, "--output", tmp_path / "shared"]
    command = [sys.executable, "-c", SHARED, "evaluate", "textvqa", *arguments, *shared]
    subprocess.run(list(map(str, command)), check=True)
    files = {(tmp_path / f"{run}/bm1.jsonl").read_bytes() for run in (1, 3, 16, "shared")}
    assert len(files) == 1
    assert [json.loads(line)["question_id"] for line in files.pop().splitlines()] == [
        row["question_id"] for row in rows
    ]
