"""Data-Juicer rows to LLaVA's json, exactly as the contest's kit does it before pretraining.

The kit caps the rows (`check_sample_number.py`: seed 1024, `random.sample` only when there are too many),
then converts them with Data-Juicer's `dj_to_llava.py --image_special_token "<__dj__image>"
--restore_questions True --original_llava_ds_path stage_1.json`: the question of the seed's own conversation,
the row's cleaned text as the answer. A literal `<image>` in a caption stays there, as in the kit; `data
check` reports it.

One thing differs: rows of which nothing would be trained on are quarantined with their reasons (the kit keeps
them, and the official trainer masks them without a word). They are drawn among the capped rows like all
others, so the rest is the kit's.

    python -m toolkit data convert --to llava --original stage_1.json --cap 200000 processed_data.jsonl
    llava.json
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.samples import END_TOKEN, IMAGE_TOKEN, QUESTION_TOKENS, conversation_problem, read_lines
from toolkit.errors import UserError
from toolkit.files import read_json, write_text

SAMPLE_SEED = 1024  # fixed by the kit


def convert(
    samples: Path, original: Path, output: Path, cap: int | None, question_tokens: int = QUESTION_TOKENS
) -> tuple[int, list[str]]:
    """Write the LLaVA json of `samples`, at most `cap` rows; return (rows written, `line N: reason` of each
    row quarantined).

    UserError names file and line of a row that cannot be converted, or says that no row remains.
    """
    if output.suffix != ".json":
        raise UserError(f"{output} does not end in .json, which the trainer expects: choose another name")
    if cap is not None and cap < 1:
        raise UserError(f"--cap is {cap}, it must be at least 1")
    rows = []
    for number, _, row, problem in read_lines(samples):
        if problem:
            raise UserError(f"{samples}, line {number}: {problem}")
        rows.append((number, row))
    if cap is not None and len(rows) > cap:
        rows = random.Random(SAMPLE_SEED).sample(rows, cap)
    questions = read_questions(original)
    converted, quarantined = [], []
    for number, row in rows:
        entry = _llava(f"{samples}, line {number}", row, questions, original)
        if problem := conversation_problem(
            entry["conversations"], has_image="image" in entry, tokens=question_tokens
        ):
            quarantined.append(f"line {number}: {problem}")
        else:
            converted.append(entry)
    if not converted:
        raise UserError(
            f"{samples} has no row that can be trained on{f', {quarantined[0]}' if quarantined else ''}"
        )
    write_text(output, json.dumps(converted, ensure_ascii=False))
    return len(converted), quarantined


def read_questions(original: Path) -> dict[str, dict[str, Any]]:
    """The seed's conversations by id (as a string); of a repeated id the last counts, as in the kit."""
    entries = read_json(original)
    if not isinstance(entries, list):
        raise UserError(f"{original} is not a list of conversations")
    questions = {}
    for position, entry in enumerate(entries):
        try:
            (question, answer), row_id = entry["conversations"][:2], entry["id"]
            texts: tuple[Any, ...] = question["from"], question["value"], answer["from"]
        except (KeyError, TypeError, ValueError):
            texts = (None,)
        if (
            not all(isinstance(text, str) for text in texts)
            or isinstance(row_id, bool)
            or not isinstance(row_id, str | int)
        ):
            raise UserError(
                f"{original}, entry {position} has no id and conversation of a question and an answer"
            )
        questions[str(row_id)] = {"id": row_id, "question": question, "answerer": answer["from"]}
    return questions


def _llava(where: str, row: Any, questions: Mapping[str, dict[str, Any]], original: Path) -> dict[str, Any]:
    """One LLaVA entry; `where` names the row in errors."""
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("text"), str)
        or not isinstance(row.get("id"), str | int)
    ):
        raise UserError(f"{where} has no id and text")
    listed = row.get("images", [])
    if not isinstance(listed, list) or not all(isinstance(image, str) for image in listed):
        raise UserError(f"{where} (id {row['id']}): images is not a list of paths")
    images = sorted(set(listed))
    if len(images) > 1:
        raise UserError(
            f"{where} (id {row['id']}) has {len(images)} distinct images; LLaVA's format takes one"
        )
    seed = questions.get(str(row["id"]))
    if seed is None:
        raise UserError(
            f"{where}: id {row['id']} is not in {original}; synthetic rows must keep the id of their seed row"
        )
    answer = {"from": seed["answerer"], "value": clean(row["text"])}
    entry = {"id": seed["id"], "conversations": [seed["question"], answer]}
    return entry | {"image": images[0]} if images else entry


def clean(text: str) -> str:
    """The answer in a row's text: surrounding space, one end token and one image token at either end removed,
    in the kit's order."""
    text = text.strip().removesuffix(END_TOKEN).strip()
    return text.removeprefix(IMAGE_TOKEN).strip().removesuffix(IMAGE_TOKEN).strip()
