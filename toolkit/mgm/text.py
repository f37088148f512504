"""Conversations to prompts, token ids and labels, for the templates gemma (both stages of MGM-2B), v1
(Vicuna) and plain (captions).

A conversation is LLaVA's list of `{"from": "human" | "gpt", "value": text}`; `<image>` marks the image.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import UserError
from toolkit.mgm.layout import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = "<image>"
V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
Turn = dict[str, str]


@dataclass(frozen=True)
class Template:
    """How turns become one string.

    roles: names of user and model. end: what closes a complete exchange and starts a new round when labels
    are made. answer: what stands between question and answer in a round.
    """

    name: str
    roles: tuple[str, str]
    end: str
    answer: str

    def prompt(self, messages: list[str | None]) -> str:
        """Messages alternate user, model; None leaves a turn open, and so does "": the official code asks `if
        message`."""
        if self.name == "plain":
            return "".join(f"{message}\n" for message in messages if message)
        if self.name == "gemma":
            turns = []
            for index, message in enumerate(messages):
                role = self.roles[index % 2]
                close = self.end if index % 2 else ""
                turns.append(
                    f"<start_of_turn>{role}\n" + (f"{message}<end_of_turn>\n{close}" if message else "")
                )
            return "".join(turns)
        text = V1_SYSTEM + " "
        for index, message in enumerate(messages):
            text += f"{self.roles[index % 2]}:"
            text += f" {message}{self.end if index % 2 else ' '}" if message else ""
        return text


TEMPLATES = {
    "gemma": Template("gemma", ("user", "model"), "<eos>", "<start_of_turn>model\n"),
    "v1": Template("v1", ("USER", "ASSISTANT"), "</s>", " ASSISTANT: "),
    "plain": Template("plain", ("", ""), "\n", ""),
}


def question_prompt(message: str, template: str = "gemma") -> str:
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
    chunks = [tokenizer(chunk).input_ids for chunk in text.split(IMAGE)]
    starts_with_bos = bool(chunks[0]) and chunks[0][0] == tokenizer.bos_token_id
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids += [IMAGE_TOKEN_INDEX, *chunk[1 if starts_with_bos else 0 :]]
    return ids


def encode(
    turns: list[Turn], tokenizer: PreTrainedTokenizerBase, template: str, *, has_image: bool
) -> tuple[list[int], list[int]]:
    """(input ids, labels) of one conversation; labels are IGNORE_INDEX everywhere but on the model's turns.

    UserError when the roles do not alternate. A conversation whose parts do not tokenise to the whole is
    masked entirely, as in the official code.
    """
    if has_image:
        turns = place_image(turns)
    if template == "plain":
        return _encode_plain(turns, tokenizer)
    style = TEMPLATES[template]
    if turns and turns[0]["from"] != "human":
        turns = turns[1:]
    if any(turn["from"] != ("human", "gpt")[index % 2] for index, turn in enumerate(turns)):
        raise UserError("the turns of a conversation must alternate between human and gpt")
    text = style.prompt([turn["value"] for turn in turns])
    ids = tokenize(text, tokenizer, has_image=has_image)
    labels = list(ids)
    total = sum(token != tokenizer.pad_token_id for token in ids)

    def length(part: str) -> int:
        return len(tokenize(part, tokenizer, has_image=has_image))

    current = 1
    labels[0] = IGNORE_INDEX
    for index, round_text in enumerate(text.split(style.end)):
        if not round_text:
            break
        parts = round_text.split(style.answer)
        if len(parts) != 2:
            break
        # v1 counts the leading <bos> and the space before the answer; its later rounds have no <bos> of their
        # own
        instruction = length(parts[0] + style.answer) - (2 if template == "v1" else 1)
        round_length = length(round_text)
        if template == "v1" and index and not _legacy(tokenizer):
            instruction, round_length = instruction - 1, round_length - 1
        labels[current : current + instruction] = [IGNORE_INDEX] * len(
            labels[current : current + instruction]
        )
        current += round_length
    labels[current:] = [IGNORE_INDEX] * len(labels[current:])
    if current < tokenizer.model_max_length and current != total:
        labels = [IGNORE_INDEX] * len(labels)
    return ids, labels


def _legacy(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a SentencePiece tokenizer keeps its old treatment of text after special tokens."""
    return bool(tokenizer.init_kwargs.get("legacy", False))


def _encode_plain(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Image and caption only: the question is thrown away."""
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
