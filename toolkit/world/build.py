"""Write the world's data in the contest's file formats: `python -m toolkit world build --part seed --seed 1
--output DIR`.

Same seed, same bytes. The parts never show the same content: see `SPLITS` in toolkit/world/scene.py.
"""

import base64
import csv
import io
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from toolkit.errors import UserError
from toolkit.files import atomic, write_json, write_jsonl, write_text
from toolkit.processes import cores, pool
from toolkit.world import captions, questions, words
from toolkit.world.scene import QUALITY, Scene, jpeg, render, sample_scene

ROWS = {"seed": 6000, "instruction": 1000, "evaluation": 500, "development": 300}
# second word of every random seed: one stream a file
STREAM = {"seed": 1, "instruction": 2, "textvqa": 3, "mmbench": 4, "pope": 5, "mme": 6}
CHOICE_SHARE = 0.8  # MMBench base questions per TextVQA question
OBJECT_SHARE = 0.2  # POPE images per TextVQA question, six questions each
TASK_SHARE = 0.02  # MME images a task per TextVQA question, two questions each
TASKS = ("existence", "count", "position", "color", "OCR")  # of MME's, those that a scene can answer
MMBENCH_COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
CATEGORIES = {  # topic -> MMBench's category and l2-category
    "colour": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "kind": ("image_topic", "coarse_perception"),
    "count": ("object_localization", "finegrained_perception (instance-level)"),
    "sign": ("ocr", "finegrained_perception (instance-level)"),
    "relation": ("spatial_relationship", "finegrained_perception (cross-instance)"),
}


@dataclass(frozen=True)
class Picture:
    """One image file to draw. `look`: "plain", "again" (a near-duplicate: other noise and quality), "blurred"
    or "tiny"."""

    path: Path
    scene: Scene
    seed: tuple[int, ...]
    look: str = "plain"


def draw(picture: Picture, side: int | None = None) -> bytes:
    """The JPEG bytes of a picture; side: enlarged to so many pixels, as photographs have."""
    image, _ = render(picture.scene, np.random.default_rng(picture.seed))
    if picture.look == "again":
        rng = np.random.default_rng([*picture.seed, 1])
        pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, 3, (*image.size, 1))
        return jpeg(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), quality=70)
    if picture.look == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(9))
    elif picture.look == "tiny":
        thumbnail = 20 + picture.seed[-1] % 11
        image = image.resize((thumbnail, thumbnail))
    if side:
        image = image.resize((side, side))
    return jpeg(image, QUALITY)


def _save(root: Path, side: int | None, picture: Picture) -> None:
    path = root / picture.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(picture, side))


def save(root: Path, pictures: list[Picture], side: int | None) -> None:
    """Write all pictures under `root`, with as many processes as there are cores for this process."""
    with pool(cores()) as workers:
        for _ in workers.map(partial(_save, root, side), pictures, chunksize=64):
            pass


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    """One LLaVA turn about an image."""
    return [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": answer}]


def build_seed(root: Path, seed: int, rows: int, side: int | None = None) -> None:
    """The seed set: captions with planted defects, and truth/labels.jsonl, which no stage of the pipeline
    reads."""
    rng = np.random.default_rng([seed, STREAM["seed"]])
    labels = list(captions.DEFECTS)
    defects = [labels[i] for i in rng.choice(len(labels), size=rows, p=list(captions.DEFECTS.values()))]
    defects[0] = "clean"  # a duplicate needs an earlier row
    scenes = [sample_scene(rng, "seed") for _ in range(rows)]
    true = [captions.caption(scene, rng) for scene in scenes]
    swapped = [row for row in range(rows) if defects[row] == "swapped"]
    swapped_captions = dict(zip(swapped, (true[row] for row in [*swapped[1:], *swapped[:1]]), strict=True))
    pictures, samples, originals, truth = [], [], [], []
    for row in range(rows):
        defect, source, look = defects[row], row, "plain"
        if defect == "duplicate":
            source = int(
                rng.choice(
                    [other for other in range(max(0, row - 200), row) if defects[other] == "clean"] or [0]
                )
            )
            look = str(rng.choice(["plain", "again"]))
        elif defect in ("blurred", "tiny"):
            look = defect
        text = swapped_captions.get(row, true[source])
        if defect == "generic":
            text = captions.generic(rng)
        elif defect == "truncated":
            text = captions.truncate(text, rng)
        elif defect == "garbled":
            text = captions.garble(text, rng)
        elif defect == "boilerplate":
            text = captions.boilerplate(rng)
        name = f"{row + 1:09d}"
        image = f"images/{name[:5]}/{name}.jpg"
        pictures.append(Picture(Path(image), scenes[source], (seed, STREAM["seed"], source), look))
        samples.append({"id": name, "text": f"<__dj__image>\n{text} <|__dj__eoc|>", "images": [image]})
        prompt = str(rng.choice(words.CAPTION_PROMPTS))
        originals.append({"id": name, "conversations": conversation(prompt, text), "image": image})
        label: dict[str, Any] = {
            "id": name,
            "defect": defect,
            "caption": true[source],
            "full_caption": captions.full_caption(scenes[source]),
        }
        if defect == "duplicate":
            label |= {"of": f"{source + 1:09d}", "exact": look == "plain"}
        truth.append(label)
    save(root, pictures, side)
    write_jsonl(root / "truth/labels.jsonl", truth)
    write_json(root / "stage_1.json", originals)
    write_jsonl(root / "mgm_pretrain_stage_1.jsonl", samples)


def instruction(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Prompt and answer: 35 % sign questions, 20 % open questions, 45 % multiple choice."""
    form = rng.random()
    if form < 0.35:
        return questions.textvqa_prompt(questions.sign_question(rng), questions.misreadings(rng)), scene.sign
    question = questions.ask(scene, rng)
    if form < 0.55:
        return questions.open_prompt(question.text), question.answer
    choices = questions.options(question, rng)
    hint = words.HINT if rng.random() < 0.1 else None
    return questions.choice_prompt(question.text, choices, hint), "ABCD"[choices.index(question.answer)]


def build_instruction(root: Path, seed: int, rows: int, side: int | None = None) -> None:
    """The fixed instruction data."""
    rng = np.random.default_rng([seed, STREAM["instruction"]])
    pictures, samples = [], []
    for row in range(rows):
        scene, name = sample_scene(rng, "instruction"), f"{row + 1:09d}"
        image = f"images/{name[:5]}/{name}.jpg"
        pictures.append(Picture(Path(image), scene, (seed, STREAM["instruction"], row)))
        samples.append({"id": name, "image": image, "conversations": conversation(*instruction(scene, rng))})
    save(root, pictures, side)
    write_json(root / "mgm_instruction_stage_1.json", samples)


def build_textvqa(root: Path, seed: int, rows: int, split: str, side: int | None = None) -> None:
    """Sign questions and their annotations: ten answers, now and then one or two that differ, as people's
    do."""
    rng = np.random.default_rng([seed, STREAM["textvqa"]])
    pictures, question_rows, annotations = [], [], []
    for row in range(rows):
        scene, name = sample_scene(rng, split), f"{row:016x}"
        question, tokens = questions.sign_question(rng), questions.misreadings(rng)
        answers = [scene.sign] * 10
        for position in rng.choice(10, size=rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]), replace=False):
            answers[position] = str(
                rng.choice([f"{scene.sign} sign", f"the word {scene.sign}", "unanswerable"])
            )
        pictures.append(Picture(Path(f"train_images/{name}.jpg"), scene, (seed, STREAM["textvqa"], row)))
        text = questions.textvqa_prompt(question, tokens)
        question_rows.append(
            {"question_id": name, "image": f"{name}.jpg", "text": text, "category": "default"}
        )
        annotations.append(
            {
                "question_id": row,
                "image_id": name,
                "question": question,
                "answers": answers,
                "set_name": "val",
            }
        )
    save(root, pictures, side)
    write_json(
        root / "TextVQA_0.5.1_val.json",
        {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": annotations},
    )
    write_jsonl(root / "llava_textvqa_val_v051_ocr.jsonl", question_rows)


def build_mmbench(root: Path, seed: int, rows: int, split: str, side: int | None = None) -> None:
    """Multiple choice, every base question four times with its options rotated: index + 1,000,000 k is the
    k-th rotation."""
    rng = np.random.default_rng([seed, STREAM["mmbench"]])
    table = []
    for row in range(rows):
        scene = sample_scene(rng, split)
        question = questions.ask(scene, rng)
        choices = questions.options(question, rng)
        hint = words.HINT if rng.random() < 0.1 else ""
        image = base64.b64encode(draw(Picture(Path(), scene, (seed, STREAM["mmbench"], row)), side)).decode()
        category, parent = CATEGORIES[question.topic]
        for turn in range(4):
            turned = choices[turn:] + choices[:turn]
            letter = "ABCD"[turned.index(question.answer)]
            index = row + turn * 1_000_000
            table.append(
                (index, question.text, hint, *turned, letter, category, image, "world", parent, "", "dev")
            )
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([MMBENCH_COLUMNS, *sorted(table)])
    with atomic(root / "mmbench_dev_20230712.tsv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def build_pope(root: Path, seed: int, rows: int, split: str, side: int | None = None) -> None:
    """Is there such an object? About each image, in each sampling, an object that is there and an object that
    is not.

    As in POPE, an absent object is drawn at random, among those that are shown most often, or is the one that
    is most often shown together with what is there.
    """
    rng = np.random.default_rng([seed, STREAM["pope"]])
    scenes = [sample_scene(rng, split) for _ in range(rows)]
    kinds_of_scenes = [{kind for _, kind in scene.objects} for scene in scenes]
    popular = Counter(kind for kinds in kinds_of_scenes for kind in sorted(kinds))
    together = {
        kind: Counter(other for kinds in kinds_of_scenes if kind in kinds for other in sorted(kinds))
        for kind in words.KINDS
    }
    labels: dict[str, list[dict[str, Any]]] = {
        sampling: [] for sampling in ("adversarial", "popular", "random")
    }
    pictures = []
    for row, (scene, kinds) in enumerate(zip(scenes, kinds_of_scenes, strict=True)):
        name = f"COCO_val2014_{row:012d}.jpg"
        pictures.append(Picture(Path("val2014") / name, scene, (seed, STREAM["pope"], row)))
        present = scene.objects[0][1]
        absent = [kind for kind in words.KINDS if kind not in kinds]
        absent_kinds = {
            "adversarial": max(absent, key=lambda kind: together[present][kind]),
            "popular": max(absent, key=lambda kind: popular[kind]),
            "random": str(rng.choice(absent)),
        }
        for sampling, other in absent_kinds.items():
            for kind, label in ((present, "yes"), (other, "no")):
                number = len(labels[sampling]) + 1
                labels[sampling].append(
                    {"question_id": number, "image": name, "text": questions.presence(kind), "label": label}
                )
    save(root, pictures, side)
    question_rows = []
    for block, sampling in enumerate(("adversarial", "random", "popular")):  # LLaVA's order and numbers
        for line in labels[sampling]:
            text = questions.open_prompt(line["text"])
            number = block * 10_000_000 + line["question_id"]
            question_rows.append(
                {"question_id": number, "image": line["image"], "text": text, "category": sampling}
            )
    for sampling, lines in labels.items():
        write_jsonl(root / "coco" / f"coco_pope_{sampling}.json", lines)
    write_jsonl(root / "llava_pope_test.jsonl", question_rows)


def build_mme(root: Path, seed: int, rows: int, split: str, side: int | None = None) -> None:
    """Five of MME's tasks, `rows` images each, a question with the answer yes and a question with no about
    each."""
    rng = np.random.default_rng([seed, STREAM["mme"]])
    folder = Path("MME_Benchmark_release_version")
    pictures: list[Picture] = []
    question_rows, labels = [], {}
    for task in TASKS:
        for _ in range(rows):
            while (asked := questions.claims(task, scene := sample_scene(rng, split), rng)) is None:
                pass
            name = f"{task}/{len(pictures):012d}"
            pictures.append(Picture(folder / f"{name}.jpg", scene, (seed, STREAM["mme"], len(pictures))))
            labels[name] = "".join(
                f"{text} Please answer yes or no.\t{answer}\n"
                for text, answer in zip(asked, ("Yes", "No"), strict=True)
            )
            question_rows += [
                {"question_id": f"{name}.jpg", "image": f"{name}.jpg", "text": text, "category": task}
                for text in map(questions.open_prompt, asked)
            ]
    save(root, pictures, side)
    for name, text in labels.items():
        write_text(root / folder / f"{name}.txt", text)
    write_jsonl(root / "llava_mme.jsonl", question_rows)


def build_evaluation(root: Path, seed: int, rows: int, side: int | None = None) -> None:
    """The benchmarks: `rows` TextVQA-like questions, 80 % as many MMBench-like ones, images for POPE and
    MME."""
    build_textvqa(root / "textvqa", seed, rows, "evaluation", side)
    build_mmbench(root / "mmbench", seed, max(1, round(rows * CHOICE_SHARE)), "evaluation", side)
    build_pope(root / "pope", seed, max(1, round(rows * OBJECT_SHARE)), "evaluation", side)
    build_mme(root / "mme", seed, max(1, round(rows * TASK_SHARE)), "evaluation", side)


def build_development(root: Path, seed: int, rows: int, side: int | None = None) -> None:
    """The contest's benchmarks on the split "tuning", which no training, no recipe's model and no evaluation
    shows: questions to choose a recipe by."""
    build_textvqa(root / "textvqa", seed, rows, "tuning", side)
    build_mmbench(root / "mmbench", seed, max(1, round(rows * CHOICE_SHARE)), "tuning", side)


def drawn(part: str, rows: int | None = None) -> dict[str, int]:
    """How many images `build` draws for a part (`rows`), and the questions of each benchmark."""
    count = ROWS[part] if rows is None else rows
    if part not in ("evaluation", "development"):
        return {"rows": count}
    shares = (CHOICE_SHARE, OBJECT_SHARE, TASK_SHARE)
    choices, objects, tasks = (max(1, round(count * share)) for share in shares)
    if part == "development":
        return {"rows": count + choices, "textvqa": count, "mmbench": 4 * choices}
    claims = len(TASKS) * tasks
    asked = {"textvqa": count, "mmbench": 4 * choices, "pope": 6 * objects, "mme": 2 * claims}
    return {"rows": count + choices + objects + claims, **asked}


def build(part: str, output: Path, seed: int, rows: int | None = None, side: int | None = None) -> None:
    """Write `part` ("seed", "instruction", "evaluation" or "development") to `output`; the files that list
    the images come last.

    rows: of the seed or the instructions, or questions of TextVQA (default: ROWS). side: of the images, in
    pixels (default: as they are drawn).
    """
    rows = ROWS[part] if rows is None else rows
    if rows < 1:
        raise UserError(f"--rows is {rows}: give at least 1")
    if seed < 0:
        raise UserError(f"--seed is {seed}: give 0 or more")
    if part == "seed":
        build_seed(output, seed, rows, side)
    elif part == "instruction":
        build_instruction(output, seed, rows, side)
    elif part == "development":
        build_development(output, seed, rows, side)
    else:
        build_evaluation(output, seed, rows, side)
