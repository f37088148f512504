"""The shipped zoo: files as recorded, small, loaded by the real classes, and good at what it is for."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.files import read_json
from toolkit.world import build, captions, questions, words
from toolkit.world.scene import render, sample_scene
from toolkit.world.zoo_train import captioner, classifiers, language, llama, tokenizer, towers
from toolkit.world.zoo_train import data as zoo_data
from toolkit.world.zoo_train.run import LANGUAGE, TRAININGS, describe, train

ZOO = Path(build.__file__).parent / "zoo"


def unseen(count: int, seed: int = 0) -> list:
    rng = np.random.default_rng([77, seed])
    return [(scene, render(scene, rng)[0]) for scene in (sample_scene(rng, "tuning") for _ in range(count))]


def test_files_are_as_recorded_and_small():
    record = read_json(ZOO / "zoo.json")
    assert describe(ZOO) == record["files"]
    assert record["licence"] and record["training"].keys() == TRAININGS.keys()
    for name, training in TRAININGS.items():
        told, examples = record["training"][name], "texts" if name in LANGUAGE else "scenes"
        assert (told["steps"], told["batch"], told[examples]) == (
            training.steps,
            training.batch,
            training.examples,
        )
        assert told["device"] in ("cpu", "cuda") and told["versions"]["torch"]
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) <= 16e6


MADE = [
    ("gemma", tokenizer.gemma),
    ("llama", tokenizer.llama),
    ("clip", tokenizer.clip),
    ("captioner", tokenizer.opt),
    ("matcher", tokenizer.clip),
]
MADE += [("detector", tokenizer.owl), ("perplexity", tokenizer.opt), ("sentences", tokenizer.clip)]


@pytest.mark.parametrize(("folder", "make"), MADE)
def test_tokenizers_are_what_the_code_builds(folder, make, tmp_path):
    make().save_pretrained(tmp_path)
    assert read_json(tmp_path / "tokenizer.json") == read_json(ZOO / folder / "tokenizer.json")


@pytest.fixture(scope="module")
def gemma_words():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ZOO / "gemma")


def test_gemma_tokenizer_has_gemmas_ids(gemma_words):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n"]
    assert gemma_words.convert_tokens_to_ids(special) == [0, 1, 2, 3, 106, 107, 108]
    assert gemma_words("a\n").input_ids[0] == 2 and gemma_words.padding_side == "right"
    assert (
        gemma_words.decode(
            gemma_words("<start_of_turn>nova<end_of_turn>\n<eos>").input_ids, skip_special_tokens=True
        ).strip()
        == "nova"
    )


def test_every_caption_and_answer_survives_the_tokenizers(gemma_words):
    rng = np.random.default_rng(1)
    texts = [*words.SIGNS, *words.NUMBERS, *words.RELATIONS, *"ABCD"]
    for split in ("seed", "instruction", "evaluation"):
        for _ in range(300):
            scene = sample_scene(rng, split)
            texts += [
                captions.caption(scene, rng),
                captions.full_caption(scene),
                questions.ask(scene, rng).answer,
            ]
    for words_of in (gemma_words, tokenizer.clip(), tokenizer.opt()):
        ids = words_of(texts).input_ids
        assert words_of.batch_decode(ids, skip_special_tokens=True) == texts
        assert words_of.unk_token_id not in {i for row in ids for i in row}


def test_prompt_is_a_prefix_of_the_conversation(gemma_words):
    rng = np.random.default_rng(2)
    for _ in range(100):
        prompt, answer = build.instruction(sample_scene(rng, "instruction"), rng)
        head = f"\n{prompt}<end_of_turn>\n<start_of_turn>model\n"
        whole = gemma_words(f"{head}{answer}<end_of_turn>\n<eos>").input_ids
        start = gemma_words(head).input_ids
        assert whole[: len(start)] == start
        assert gemma_words.unk_token_id not in whole


def test_clip_tells_right_captions_from_wrong_ones():
    from transformers import AutoProcessor, CLIPModel

    processor, model = AutoProcessor.from_pretrained(ZOO / "clip"), CLIPModel.from_pretrained(ZOO / "clip")
    assert model.dtype == torch.float32
    scenes = unseen(64)
    texts = [captions.full_caption(scene) for scene, _ in scenes]
    inputs = processor(
        text=texts,
        images=[image for _, image in scenes],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=32,
    )
    with torch.no_grad():
        cosine = (model(**inputs).logits_per_text / 100).numpy()
    right, wrong = cosine.diagonal(), cosine[~np.eye(64, dtype=bool)]
    assert (right[:, None] > wrong[None]).mean() > 0.98  # area under the ROC curve
    assert right.mean() > 0.7 and wrong.min() >= -1 and right.max() <= 1.001


def test_captioner_says_everything():
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(ZOO / "captioner")
    model = Blip2ForConditionalGeneration.from_pretrained(ZOO / "captioner").eval()
    scenes = unseen(32, seed=1)
    inputs = processor(images=[image for _, image in scenes], return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    said = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert (
        np.mean([text == captions.full_caption(scene) for text, (scene, _) in zip(said, scenes, strict=True)])
        >= 0.8
    )


def test_matcher_tells_true_captions_from_others():
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    processor, model = (
        AutoProcessor.from_pretrained(ZOO / "matcher"),
        BlipForImageTextRetrieval.from_pretrained(ZOO / "matcher").eval(),
    )
    rng, scenes = np.random.default_rng(5), unseen(100, seed=2)
    true = [captions.caption(scene, rng) for scene, _ in scenes]
    near = [zoo_data.nearby(scene, rng) for scene, _ in scenes]

    def matches(texts: list[str]) -> float:
        inputs = processor(
            text=texts, images=[image for _, image in scenes], return_tensors="pt", padding=True
        )
        with torch.no_grad():
            return (model(**inputs).itm_score.argmax(1) == 1).float().mean().item()

    assert matches(true) >= 0.97 and matches(true[1:] + true[:1]) <= 0.03 and matches(near) <= 0.15


def test_classifiers_find_what_they_are_for():
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    pixels = torch.stack([torch.from_numpy(np.array(image)) for _, image in unseen(60, seed=3)]).float()
    generator = torch.Generator().manual_seed(0)
    for name, plant in (("watermark", classifiers.watermarked), ("pattern", classifiers.chequered)):
        processor, model = (
            AutoImageProcessor.from_pretrained(ZOO / name),
            AutoModelForImageClassification.from_pretrained(ZOO / name),
        )
        shown = torch.cat([pixels, plant(pixels, generator)]).round().to(torch.uint8).numpy()
        with torch.no_grad():
            found = model.eval()(**processor(list(shown), return_tensors="pt")).logits.argmax(1)
        assert (found == torch.arange(120).ge(60).long()).float().mean() >= 0.97, name


@pytest.mark.parametrize(("name", "template"), [("gemma", "gemma"), ("llama", "llama_3")])
def test_language_models_answer_from_text_and_not_without_it(name, template):
    from transformers import AutoConfig, AutoModelForCausalLM

    from toolkit.mgm.text import TEMPLATES
    from toolkit.mgm.tokenizer import load_tokenizer

    config = AutoConfig.from_pretrained(ZOO / name)
    if name == "gemma":
        config.hidden_act = "gelu"
    model = AutoModelForCausalLM.from_pretrained(ZOO / name, config=config).eval()
    tokenizer_of = load_tokenizer(ZOO / name, 256)
    rng = np.random.default_rng(3)

    def accuracy(blind: bool) -> float:
        right = []
        for _ in range(80):
            scene = sample_scene(rng, "tuning")
            prompt, answer = build.instruction(scene, rng)
            shown = captions.full_caption(sample_scene(rng, "tuning") if blind else scene)
            text = TEMPLATES[template].prompt([f"{shown}\n{prompt}", None])
            ids = tokenizer_of(text, return_tensors="pt").input_ids
            with torch.no_grad():
                right.append(model(ids).logits[0, -1].argmax().item() == tokenizer_of(answer).input_ids[1])
        return float(np.mean(right))

    assert accuracy(blind=False) > 0.9 and accuracy(blind=True) < 0.45


def test_towers_load_into_mgm():
    from toolkit.mgm.checkpoint import build as build_mgm

    model = build_mgm(ZOO / "gemma", ZOO / "clip", ZOO / "convnext", image_size_aux=128, model_max_length=256)
    assert model.mgm.dims == towers.DIMS and model.mgm.depths == towers.DEPTHS
    assert model.clip_features(torch.zeros(1, 3, 84, 84)).shape == (1, 16, 96)
    maps = model.aux_maps(torch.zeros(1, 3, 128, 128))
    assert sum(m.shape[1] for m in maps) == 240 and maps[0].shape[2:] == (32, 32)


def test_convnext_names_are_those_of_open_clip():
    from safetensors import safe_open

    with safe_open(ZOO / "convnext/open_clip_model.safetensors", "pt") as handle:
        names = list(handle.keys())
    block = r"blocks\.\d\.(gamma|conv_dw\.(weight|bias)|norm\.(weight|bias)|mlp\.fc[12]\.(weight|bias))"
    stage = rf"stages\.[0-3]\.(downsample\.[01]\.(weight|bias)|{block})"
    pattern = rf"visual\.trunk\.(stem\.[01]\.(weight|bias)|{stage})"
    assert names and all(re.fullmatch(pattern, name) for name in names)


def test_training_code_runs(tmp_path):
    zoo_data.rendered(tmp_path / "scenes", 24, seed=1, processes=1)
    images, tags, texts = zoo_data.load(tmp_path / "scenes")
    assert images.shape == (24, 128, 128, 3) and tags.shape == (24, 16, 4) and len(texts) == 24
    for row, (full, *_) in zip(tags, texts, strict=True):
        word = full.split()[-1]
        assert set(row[:, 3]) - {0} == {words.SIGNS.index(word) + 1}  # some cell shows the sign
        colours = {list(words.COLOURS)[i - 1] for i in row[:, 0] if i}
        assert colours == set(full.replace(",", "").split()) & set(words.COLOURS)
    settings = {"steps": 2, "batch": 8, "device": "cpu"}
    language.run(tmp_path / "gemma", texts=100, processes=1, **settings)
    llama.run(tmp_path / "llama", texts=100, processes=1, **settings)
    towers.run(tmp_path, folder=tmp_path / "scenes", **settings)
    captioner.run(tmp_path / "captioner", folder=tmp_path / "scenes", **settings)
    assert {name.split("/")[0] for name in describe(tmp_path)} >= {
        "gemma",
        "llama",
        "clip",
        "convnext",
        "captioner",
    }


def test_small_models_are_trained_and_described(tmp_path, monkeypatch):
    small = ("matcher", "detector", "perplexity", "sentences", "watermark", "sharpness")
    for name in small:
        monkeypatch.setitem(TRAININGS, name, replace(TRAININGS[name], steps=2, batch=6, examples=12))
    # which sees the small numbers
    monkeypatch.setattr("toolkit.world.zoo_train.run.ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    train(tmp_path, small, "cpu")
    record = read_json(tmp_path / "zoo.json")
    assert record["files"] == describe(tmp_path) and record["training"].keys() == set(small)
    assert {name.split("/")[0] for name in record["files"]} == set(small)
    assert (
        record["training"]["matcher"] | {"steps": 2, "batch": 6, "scenes": 12, "device": "cpu"}
        == record["training"]["matcher"]
    )


def test_a_training_that_there_is_not_is_named(tmp_path, capsys):
    from toolkit.__main__ import main

    assert main(["world", "zoo-train", "--output", str(tmp_path), "--models", "clip"]) == 1
    assert "--models names clip: choose from gemma, llama, towers" in capsys.readouterr().err
