"""Questions about scenes, in the exact prompt shapes of TextVQA and MMBench as the contest's kit asks them,
and of POPE and MME as LLaVA does."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from toolkit.world.captions import noun
from toolkit.world.scene import Scene
from toolkit.world.words import (
    BETWEEN,
    COLOURS,
    KINDS,
    LETTER,
    NUMBERS,
    OCR,
    OPPOSITE,
    PLURALS,
    RELATIONS,
    SHORT,
    SIGN_QUESTIONS,
    SIGNS,
)


@dataclass(frozen=True)
class Question:
    """A question with a short answer, its topic, and the values that the answer could have had."""

    text: str
    answer: str
    topic: str
    values: tuple[str, ...]


def topic(scene: Scene, rng: np.random.Generator) -> str:
    """What to ask about; the shares make one, two, three and four equally frequent answers to "how many"."""
    if scene.relation:
        return str(rng.choice(("colour", "kind", "relation", "sign"), p=(0.25, 0.2, 0.35, 0.2)))
    return str(
        rng.choice(
            ("colour", "kind", "count", "sign"),
            p=(0.35, 0.34, 0.11, 0.2) if scene.count == 1 else (0.2, 0.15, 0.45, 0.2),
        )
    )


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """A random question about a scene; in a pair, about either object."""
    about = topic(scene, rng)
    if about == "sign":
        return Question(sign_question(rng), scene.sign, about, SIGNS)
    number = int(rng.integers(len(scene.objects)))
    colour, kind = scene.objects[number]
    if about == "relation":
        assert scene.relation is not None
        first, second = (noun(*item).split(" ", 1)[1] for item in scene.objects)
        return Question(f"Where is the {first} relative to the {second}?", scene.relation, about, RELATIONS)
    if about == "count":
        return Question(f"How many {PLURALS[kind]} are there?", NUMBERS[scene.count - 1], about, NUMBERS)
    if about == "colour":
        text = f"What colour is the {kind}?" if scene.count == 1 else f"What colour are the {PLURALS[kind]}?"
        return Question(text, colour, about, tuple(COLOURS))
    if scene.relation:  # the two colours may be equal, the relation tells the objects apart
        side = scene.relation if number == 0 else OPPOSITE[scene.relation]
        place = {
            "left": "on the left",
            "right": "on the right",
            "above": "at the top",
            "below": "at the bottom",
        }[side]
        return Question(f"Which object is {place}?", kind, about, KINDS)
    return Question("Which object is shown?", kind, about, KINDS)


def sign_question(rng: np.random.Generator) -> str:
    """A question whose answer is the sign's word."""
    return str(rng.choice(SIGN_QUESTIONS))


def misreadings(rng: np.random.Generator) -> list[str]:
    """OCR tokens that tell nothing: up to four random sign words, drawn without looking at the image."""
    return [str(word) for word in rng.choice(SIGNS, size=rng.integers(0, 5), replace=False)]


def textvqa_prompt(question: str, tokens: list[str]) -> str:
    """Question, OCR tokens, instruction: three lines."""
    return f"{question}\n{OCR}{', '.join(tokens)}\n{SHORT}"


def open_prompt(question: str) -> str:
    """Question and instruction: two lines."""
    return f"{question}\n{SHORT}"


def presence(kind: str) -> str:
    """Whether something is there, in POPE's words."""
    return f"Is there a {kind} in the image?"


def claims(task: str, scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Two of MME's questions in a task, the answers yes and no; None for a scene that the task cannot ask
    about."""

    def other(values: Iterable[str], taken: Container[str]) -> str:
        return str(rng.choice([value for value in values if value not in taken]))

    colour, kind = scene.objects[0]
    if task == "existence":
        absent = other(KINDS, [kind for _, kind in scene.objects])
        return presence(kind), presence(absent)
    if task == "color":
        wrong = other(COLOURS, [colour])
        return f"Is there {noun(colour, kind)} in the image?", f"Is there {noun(wrong, kind)} in the image?"
    if task == "OCR":
        wrong = other(SIGNS, [scene.sign])
        return f'Is the word on the sign "{scene.sign}"?', f'Is the word on the sign "{wrong}"?'
    if task == "count" and scene.count > 1:
        number = NUMBERS[scene.count - 1]
        wrong = other(NUMBERS[1:], [number])
        return (
            f"Are there {number} {PLURALS[kind]} in the image?",
            f"Are there {wrong} {PLURALS[kind]} in the image?",
        )
    if task == "position" and scene.relation:
        first, second = (noun(*item).split(" ", 1)[1] for item in scene.objects)
        right, wrong = BETWEEN[scene.relation], BETWEEN[OPPOSITE[scene.relation]]
        return f"Is the {first} {right} the {second}?", f"Is the {first} {wrong} the {second}?"
    return None


def options(question: Question, rng: np.random.Generator) -> list[str]:
    """Four different options in random order, the answer among them."""
    wrong_values = [value for value in question.values if value != question.answer]
    values = [question.answer, *(str(value) for value in rng.choice(wrong_values, size=3, replace=False))]
    return [values[i] for i in rng.permutation(4)]


def choice_prompt(question: str, choices: list[str], hint: str | None = None) -> str:
    """[hint,] question, one line per option, instruction."""
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=False)]
    return "\n".join(([hint] if hint else []) + [question, *lines, LETTER])
