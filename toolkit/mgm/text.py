"""Conversations to prompts, token ids and labels, by the templates of the family's members.

A conversation is LLaVA's list of `{"from": "human" | "gpt", "value": text}`; `<image>` marks the image.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import UserError
from toolkit.mgm.layout import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = "<image>"
HELPER = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"  # the official model's own header, too
Turn = dict[str, str]


@dataclass(frozen=True)
class Template:
    """How turns become one string, and which part of it is learned.

    system, after: what comes before the first turn. user, model: header of a turn, which an open or empty
    turn has too, then what surrounds its text. again: what comes before a user's later turns.

    Labels: the text is cut at `end` into rounds, the first of `pieces[0]` and the later ones of `pieces[1]`
    pieces; each round once at `answer`, and what follows that is learned. bos: whether <bos> is expected in
    front. merged: how many ids a question's length counts too much, <bos> and a last one that an answer's
    first letters merge with. shift: ids that the first and the later rounds count too few, since <bos> of the
    counting stands for `end`; by whether the tokenizer is of the old kind (`legacy`), with which text after a
    special token begins with a space. stop: a token that ends an answer as <eos> does.
    """

    system: str
    after: str
    user: tuple[str, str, str]
    model: tuple[str, str, str]
    end: str
    answer: str
    again: str = ""
    pieces: tuple[int, int] = (1, 1)
    bos: bool = True
    merged: int = 1
    shift: dict[bool, tuple[int, int]] | None = None
    stop: str = ""

    def prompt(self, messages: list[str | None]) -> str:
        """Messages alternate user, model; None leaves a turn open, and so does "": the official code asks `if
        message`."""
        text = self.system + self.after
        for index, message in enumerate(messages):
            header, before, behind = self.model if index % 2 else self.user
            again = self.again if message and index and not index % 2 else ""
            text += again + header + (f"{before}{message}{behind}" if message else "")
        return text


TEMPLATES = {
    "gemma": Template(
        "",
        "",
        ("<start_of_turn>user\n", "", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "", "<end_of_turn>\n<eos>"),
        end="<eos>",
        answer="<start_of_turn>model\n",
    ),
    "llama_3": Template(
        LLAMA_3_SYSTEM + HELPER,
        "<|eot_id|>",
        ("<|start_header_id|>user<|end_header_id|>\n\n", "", "<|eot_id|>"),
        (LLAMA_3_SYSTEM, "", "<|eot_id|>"),
        end="<|eot_id|>",
        answer=f"<|eot_id|>{LLAMA_3_SYSTEM}",
        pieces=(3, 2),
        stop="<|eot_id|>",
    ),
    "chatml_direct": Template(
        "<|im_start|>system\nAnswer the questions.",
        "<|im_end|>",
        ("<|im_start|>user\n", "", "<|im_end|>"),
        ("<|im_start|>assistant\n", "", "<|im_end|>"),
        end="<|im_end|>",
        answer="<|im_end|><|im_start|>assistant\n",
        pieces=(3, 2),
        bos=False,
        shift={True: (1, 1), False: (0, 0)},
    ),
    "v1": Template(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
        " ",
        ("USER:", " ", " "),
        ("ASSISTANT:", " ", "</s>"),
        end="</s>",
        answer=" ASSISTANT: ",
        merged=2,
        shift={True: (0, 0), False: (0, -1)},
    ),
    "mistral_instruct": Template(
        "",
        "",
        ("", "[INST] ", " [/INST]"),
        ("", " ", " </s>"),
        again="<s>",
        end="</s>",
        answer="[/INST] ",
        merged=2,
    ),
    "plain": Template("", "", ("", "", "\n"), ("", "", "\n"), end="\n", answer=""),
}


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that a model with this tokenizer answers with: the first whose end is one of its tokens.
    The official code goes by the name of the model's folder."""
    words = tokenizer.get_vocab()
    return next((name for name, style in TEMPLATES.items() if style.end in words), "plain")


def ends(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Ids of the tokens that end an answer."""
    stop = TEMPLATES[template].stop
    return [tokenizer.eos_token_id, *([tokenizer.convert_tokens_to_ids(stop)] if stop else [])]


def question_prompt(message: str, template: str) -> str:
    """The generation prompt of one user message with one image before it."""
    return TEMPLATES[template].prompt([f"{IMAGE}\n{message}", None])


def place_image(turns: list[Turn]) -> list[Turn]:
    """In every turn with <image>, move one marker and a newline to the front; several markers in a turn
    collapse to one."""
    moved = []
    for turn in turns:
        value = turn["value"]
        if IMAGE in value:
            value = f"{IMAGE}\n{value.replace(IMAGE, '').strip()}".strip()
        moved.append({"from": turn["from"], "value": value})
    return moved


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase, *, has_image: bool = True) -> list[int]:
    """Token ids with one <bos> and IMAGE_TOKEN_INDEX for each <image>; text without images is cut at the
    model's length."""
    if not has_image:
        return tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
    chunks = [tokenizer(chunk, verbose=False).input_ids for chunk in text.split(IMAGE)]
    return _joined(chunks, tokenizer)


def tokenize_all(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`tokenize` of many texts at once, by threads of the tokenizer's own: no process may be forked after."""
    if not texts:
        return []
    chunks = list(dict.fromkeys(chunk for text in texts for chunk in text.split(IMAGE)))
    ids = dict(zip(chunks, tokenizer(chunks, verbose=False).input_ids, strict=True))
    return [_joined([ids[chunk] for chunk in text.split(IMAGE)], tokenizer) for text in texts]


def _joined(chunks: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of what stands between images, with a place for each image and the first <bos> alone."""
    starts_with_bos = bool(chunks[0]) and chunks[0][0] == tokenizer.bos_token_id
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids += [IMAGE_TOKEN_INDEX, *chunk[1 if starts_with_bos else 0 :]]
    return ids


def encode(
    turns: list[Turn], tokenizer: PreTrainedTokenizerBase, template: str | Template, *, has_image: bool
) -> tuple[list[int], list[int]]:
    """(input ids, labels) of one conversation; labels are IGNORE_INDEX everywhere but on the model's turns.

    UserError for another role than human and gpt, and when the roles do not alternate. A conversation whose
    parts do not tokenise to the whole is masked entirely, as in the official code.
    """
    if has_image:
        turns = place_image(turns)
    style = TEMPLATES[template] if isinstance(template, str) else template
    if not style.answer:
        return _encode_caption(turns, tokenizer)
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
    if any(turn["from"] != ("human", "gpt")[index % 2] for index, turn in enumerate(turns)):
        raise UserError("the turns of a conversation must alternate between human and gpt")
    text = style.prompt([turn["value"] for turn in turns])
    ids = tokenize(text, tokenizer, has_image=has_image)
    labels = list(ids)

    def mask(places: slice) -> None:
        labels[places] = [IGNORE_INDEX] * len(labels[places])

    def length(part: str) -> int:  # not cut at the model's length, unlike the whole
        return len(tokenize(part, tokenizer) if has_image else tokenizer(part, verbose=False).input_ids)

    current = int(style.bos)
    mask(slice(0, current))
    shifts = (style.shift or {}).get(bool(tokenizer.init_kwargs.get("legacy")), (0, 0))
    for index, part in enumerate(_rounds(text, style)):
        halves = part.split(style.answer)
        if not part or len(halves) != 2:
            break
        shift = shifts[index > 0]
        mask(slice(current, current + length(halves[0] + style.answer) - style.merged + shift))
        current += length(part) + shift
    mask(slice(current, None))
    total = sum(token != tokenizer.pad_token_id for token in ids)
    if current < tokenizer.model_max_length and current != total:
        mask(slice(0, None))
    return ids, labels


def _rounds(text: str, style: Template) -> list[str]:
    """The rounds of a conversation without the ends that separate them."""
    pieces, (first, later) = text.split(style.end), style.pieces
    starts = [0, *range(first, len(pieces), later), len(pieces)]
    return [style.end.join(pieces[start:stop]) for start, stop in pairwise(starts)]


def _encode_caption(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Image and caption only: the question is thrown away. UserError unless there are two turns, the first
    with an image."""
    if len(turns) != 2 or IMAGE not in turns[0]["value"]:
        raise UserError(f"the template plain takes two turns, {IMAGE} in the first: a caption of an image")
    ids = tokenize(IMAGE + turns[1]["value"] + "\n", tokenizer)
    masked = len(tokenize(IMAGE, tokenizer))
    return ids, [IGNORE_INDEX] * masked + ids[masked:]


def collate(samples: list[dict[str, Any]], pad_token_id: int, max_length: int) -> dict[str, Tensor]:
    """Right-pad ids and labels to one length, at most `max_length`; stack images. Keys: input_ids, labels,
    mask, images, images_aux."""

    def pad(key: str, value: int) -> Tensor:
        rows = [torch.tensor(sample[key]) for sample in samples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)[:, :max_length]

    ids = pad("input_ids", pad_token_id)
    return {
        "input_ids": ids,
        "labels": pad("labels", IGNORE_INDEX),
        "mask": ids.ne(pad_token_id),
        "images": torch.stack([sample["images"] for sample in samples]),
        "images_aux": torch.stack([sample["images_aux"] for sample in samples]),
    }
