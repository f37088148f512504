"""Training data of the zoo: rendered scenes with what every patch shows and false captions, and texts around
maps of words.

Split "zoo" only. Of the defects planted in the seed set none but the swapped caption is shown to a model that
will judge rows.
"""

import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from toolkit.mgm.text import IMAGE, TEMPLATES
from toolkit.world import questions, words
from toolkit.world.captions import boilerplate, caption, full_caption, garble, generic
from toolkit.world.scene import CANVAS, CELL, Placed, Scene, jpeg, place, render, sample_scene

GRID = 4  # cells a side, the tiny CLIP's patches
TAGS = ("colour", "kind", "count", "word")  # 0 is "none" in each
SIZES = (len(words.COLOURS) + 1, len(words.KINDS) + 1, len(words.NUMBERS) + 1, len(words.SIGNS) + 1)
MAP_WORDS = 4  # words that may stand in one cell of a map
LENGTH = 128  # tokens of a text
FORMS = ("caption", "sign", "open", "choice")  # of a conversation


def tag(scene: Scene, placed: list[Placed]) -> np.ndarray:
    """What each cell shows, [16, 4] indices in the order of TAGS.

    A cell shows an object whose centre it holds or that covers 40 % of it, and a sign that runs over 35 % of
    its width.
    """
    tags = np.zeros((GRID * GRID, len(TAGS)), dtype=np.uint8)
    for box in placed:
        cx, cy = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        for cell in range(GRID * GRID):
            x, y = cell % GRID * CELL, cell // GRID * CELL
            wide = max(0.0, min(box.x1, x + CELL) - max(box.x0, x)) / CELL
            high = max(0.0, min(box.y1, y + CELL) - max(box.y0, y)) / CELL
            if box.thing is None:
                if y <= cy < y + CELL and wide >= 0.35:
                    tags[cell, 3] = words.SIGNS.index(scene.sign) + 1
            elif wide * high >= 0.4 or (x <= cx < x + CELL and y <= cy < y + CELL):
                colour, kind = scene.objects[box.thing]
                tags[cell, :3] = (
                    list(words.COLOURS).index(colour) + 1,
                    words.KINDS.index(kind) + 1,
                    scene.count,
                )
    return tags


def nearby(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of `scene` that is wrong in one thing: a colour, a kind, the relation or number, or the
    sign's word."""

    def other(values: tuple[str, ...], *excluded: str) -> str:
        return str(rng.choice([value for value in values if value not in excluded]))

    objects, number = list(scene.objects), int(rng.integers(len(scene.objects)))
    colour, kind = objects[number]
    draw = rng.random()
    if draw < 0.3:
        objects[number] = (other(tuple(words.COLOURS), colour), kind)
        changed = replace(scene, objects=tuple(objects))
    elif draw < 0.6:
        objects[number] = (colour, other(words.KINDS, *(name for _, name in objects)))
        changed = replace(scene, objects=tuple(objects))
    elif draw < 0.8:
        sign = other(words.SIGNS, scene.sign)
        while sign not in (text := caption(replace(scene, sign=sign), rng)).split():
            pass  # not all captions name the sign
        return text
    elif scene.relation:
        changed = replace(scene, relation=other(words.RELATIONS, scene.relation))
    else:
        changed = replace(
            scene, count=int(rng.choice([count for count in (1, 2, 3, 4) if count != scene.count]))
        )
    return caption(changed, rng)


def things(scene: Scene, placed: list[Placed]) -> list[list[Any]]:
    """[name, x0, y0, x1, y1] of every object and the sign: what a detector is asked for, and its box in units
    of the image."""

    def name(box: Placed) -> str:
        if box.thing is None:
            return f"sign {scene.sign}"
        colour, kind = scene.objects[box.thing]
        return f"{colour} {kind if scene.count == 1 else words.PLURALS[kind]}"

    return [
        [name(box), *(round(value / CANVAS, 4) for value in (box.x0, box.y0, box.x1, box.y1))]
        for box in placed
    ]


def _render_chunk(folder: Path, seed: int, styles: int, chunk: tuple[int, int]) -> None:
    images, tags, texts, nearby_texts, boxes = [], [], [], [], []
    for row in range(*chunk):
        rng = np.random.default_rng([seed, row])
        scene = sample_scene(rng, "zoo")
        image, placed = render(scene, rng)
        with Image.open(io.BytesIO(jpeg(image, int(rng.integers(75, 96))))) as encoded:
            images.append(np.asarray(encoded))
        tags.append(tag(scene, placed))
        texts.append([full_caption(scene), *(caption(scene, rng) for _ in range(styles))])
        nearby_texts.append([nearby(scene, rng) for _ in range(styles)])
        boxes.append(things(scene, placed))
    np.save(folder / f"images-{chunk[0]}.npy", np.stack(images))
    np.save(folder / f"tags-{chunk[0]}.npy", np.stack(tags))
    for name, values in (("texts", texts), ("nearby", nearby_texts), ("things", boxes)):
        (folder / f"{name}-{chunk[0]}.json").write_text(json.dumps(values))


def rendered(folder: Path, count: int, seed: int, processes: int, styles: int = 3) -> None:
    """Render `count` scenes into chunk files in `folder`: images uint8 [n, 128, 128, 3], tags [n, 16, 4],
    captions (the full one first), captions wrong in one thing, and `things`."""
    folder.mkdir(parents=True, exist_ok=True)
    size = min(2500, count)
    chunks = [(start, min(count, start + size)) for start in range(0, count, size)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(_render_chunk, folder, seed, styles), chunks))


def _starts(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("tags-*.npy"))


def load_images(folder: Path) -> np.ndarray:
    """The images of all chunks."""
    return np.concatenate([np.load(folder / f"images-{start}.npy") for start in _starts(folder)])


def load_lists(folder: Path, name: str) -> list[list[Any]]:
    """ "texts", "nearby" or "things" of all chunks."""
    return [
        row for start in _starts(folder) for row in json.loads((folder / f"{name}-{start}.json").read_text())
    ]


def load(folder: Path) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """Images, tags and true captions of all chunks."""
    tags = np.concatenate([np.load(folder / f"tags-{start}.npy") for start in _starts(folder)])
    return load_images(folder), tags, load_lists(folder, "texts")


def conversation(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    """One of FORMS, a prompt of that form as the contest's data has it, and the answer."""
    draw = rng.random()
    if draw < 0.3:
        answer = caption(scene, rng)
        # a language model has read the web: bad captions do not surprise it without bound
        if rng.random() < 0.05:
            answer = str(rng.choice([generic(rng), boilerplate(rng), garble(answer, rng)]))
        return "caption", str(rng.choice(words.CAPTION_PROMPTS)), answer
    if draw < 0.5:
        return (
            "sign",
            questions.textvqa_prompt(questions.sign_question(rng), questions.misreadings(rng)),
            scene.sign,
        )
    question = questions.ask(scene, rng)
    if draw < 0.65:
        return "open", questions.open_prompt(question.text), question.answer
    choices = questions.options(question, rng)
    hint = words.HINT if rng.random() < 0.1 else None
    return (
        "choice",
        questions.choice_prompt(question.text, choices, hint),
        "ABCD"[choices.index(question.answer)],
    )


def word_map(
    scene: Scene, tags: np.ndarray, ids: dict[str, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a good projector would say at each of the 16 image tokens: word ids [16, 4] and their weights (0
    to 1, not all sum to 1).

    A cell says one of its words, or a mixture; empty and some other cells say a filler word or nothing.
    """
    word_ids, weights = np.zeros((16, MAP_WORDS), dtype=np.int16), np.zeros((16, MAP_WORDS), dtype=np.float16)
    fillers = [ids[word] for word in (".", ",", "a", "the", "picture", "and", "on", "\n")]
    filler = rng.choice(fillers) if rng.random() < 0.5 else None  # one for the whole map, or one a cell
    mixed = rng.random() < 0.6  # maps of single words are the other 40 %
    for cell, (colour, kind, count, word) in enumerate(tags):
        names = []
        if colour:
            names = [
                list(words.COLOURS)[colour - 1],
                words.KINDS[kind - 1] if count == 1 else words.PLURALS[words.KINDS[kind - 1]],
            ]
            if count > 1 and rng.random() < 0.5:
                names.append(words.NUMBERS[count - 1])
        if word:
            names.append(words.SIGNS[word - 1])
        if not names or rng.random() < 0.08:
            if rng.random() < 0.7:
                word_ids[cell, 0], weights[cell, 0] = filler or rng.choice(fillers), rng.uniform(0.3, 1)
            continue
        word_ids[cell, : len(names)] = [ids[name] for name in names]
        single = colour and not mixed and (tags[:, :2] == tags[cell, :2]).all(1).sum() > 1
        if single or len(names) == 1:  # one word a cell, where another cell can say the other
            weights[cell, rng.integers(len(names))] = rng.uniform(0.6, 1.4)
        else:
            weights[cell, : len(names)] = rng.dirichlet([4] * len(names)) * rng.uniform(0.8, 1.6)
    return word_ids, weights


def _attributes(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in words, for texts without an image."""
    if rng.random() < 0.5:
        return full_caption(scene)
    parts = [f"{colour} {kind}" for colour, kind in scene.objects] + [f"sign {scene.sign}"]
    if scene.relation:
        parts.append(f"{scene.objects[0][1]} {words.BETWEEN[scene.relation]} {scene.objects[1][1]}")
    return ", ".join([*parts, words.NUMBERS[scene.count - 1]])


def _language_chunk(
    tokenizer: PreTrainedTokenizerFast, seed: int, text_only: float, template: str, chunk: tuple[int, int]
) -> dict[str, np.ndarray]:
    size, style = chunk[1] - chunk[0], TEMPLATES[template]
    length = LENGTH + len(tokenizer(style.prompt([]), add_special_tokens=False).input_ids)
    rows: dict[str, np.ndarray] = {
        "ids": np.zeros((size, length), dtype=np.int16),
        "form": np.zeros(size, dtype=np.int8),  # index in FORMS
        "answer": np.zeros((size, 2), dtype=np.int16),  # first and one past the last position that is trained
        "map": np.zeros((size, 16, MAP_WORDS), dtype=np.int16),
        "weights": np.zeros((size, 16, MAP_WORDS), dtype=np.float16),
    }
    vocab = tokenizer.get_vocab()
    for row in range(size):
        rng = np.random.default_rng([seed, chunk[0] + row])
        scene = sample_scene(rng, "zoo")
        form, prompt, answer = conversation(scene, rng)
        rows["form"][row] = FORMS.index(form)
        before, after = style.prompt([f"{IMAGE}\n{prompt}", answer]).split(IMAGE)
        tail_text, _, target_text = after.partition(style.answer)
        head = tokenizer(before).input_ids
        if rng.random() < text_only:
            middle = tokenizer(_attributes(scene, rng), add_special_tokens=False).input_ids
        else:
            middle = [tokenizer.pad_token_id] * 16  # replaced by the map
            rows["map"][row], rows["weights"][row] = word_map(
                scene, tag(scene, place(scene, rng)[0]), vocab, rng
            )
        tail = tokenizer(tail_text + style.answer, add_special_tokens=False).input_ids
        target = tokenizer(target_text, add_special_tokens=False).input_ids
        ids = (head + middle + tail + target)[:length]
        rows["ids"][row, : len(ids)] = ids
        rows["answer"][row] = len(head + middle + tail), len(ids)
    return rows


def language(
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    seed: int,
    processes: int,
    text_only: float = 0.2,
    template: str = "gemma",
) -> dict[str, np.ndarray]:
    """`count` conversations: ids [n, 128 and the template's beginning], answer [n, 2], and word maps [n, 16,
    4] with weights, all zero where there is no image."""
    size = min(5000, count)
    chunks = [(start, min(count, start + size)) for start in range(0, count, size)]
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(partial(_language_chunk, tokenizer, seed, text_only, template), chunks))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
