"""Word-level tokenizers of the zoo: one token a word, unknown words spelled letter by letter, decoding back
to plain text.

All three text models share the words; only special tokens and their ids differ, as they do between Gemma,
CLIP and OPT.
"""

import string
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from toolkit.mgm.text import HELPER
from toolkit.world import questions, words
from toolkit.world.captions import caption
from toolkit.world.scene import sample_scene

NEWLINE = "\n"
GEMMA = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 106, "<end_of_turn>": 107}
CLIP = {"<pad>": 0, "<unk>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
LLAMA = {
    name: number
    for number, name in enumerate(
        (
            "<|reserved_special_token_0|>",  # what Llama-3 is padded with
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        )
    )
}
OPT = {"<pad>": 1, "</s>": 2, "<unk>": 3, "<image>": 4}


def _splitter() -> pre_tokenizers.PreTokenizer:
    """Newlines and punctuation stand alone, other white space separates."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"[^\w\s]|_"), "isolated"),
        ]
    )


def vocabulary() -> list[str]:
    """Every word of the world, sorted, then punctuation, letters and their continuations."""
    rng = np.random.default_rng(0)
    texts = [
        "user model",
        words.SHORT,
        words.LETTER,
        words.OCR,
        words.HINT,
        *words.NUMBERS,
        *words.SIGNS,
        *words.KINDS,
        *words.COLOURS,
    ]
    texts += [
        *words.RELATIONS,
        *words.PLURALS.values(),
        *words.CAPTION_PROMPTS,
        *words.SIGN_QUESTIONS,
        *words.GENERIC,
        *words.BOILERPLATE,
        "A B C D",
    ]
    for _ in range(2000):
        scene = sample_scene(rng, "zoo")
        texts += [caption(scene, rng), questions.ask(scene, rng).text]
    splitter = _splitter()
    distinct: set[str] = set()
    for text in texts:
        distinct.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    characters = string.ascii_letters + string.digits
    pieces = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
    return sorted(distinct - set(pieces)) + pieces


def build(
    special: dict[str, int],
    before: tuple[str, ...],
    after: tuple[str, ...],
    more: tuple[str, ...] = (),
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer: ids of `special` fixed, words around them, `more` of them last; `before` and `after`
    are added to every text."""
    options = {"pad_token": "<pad>", "unk_token": "<unk>"} | options
    ids = dict(special)
    if "<start_of_turn>" in special:
        ids[NEWLINE] = 108  # Gemma's id
    free = (i for i in range(10_000) if i not in ids.values())
    vocab = ids | {word: next(free) for word in [*vocabulary(), NEWLINE, *more] if word not in ids}
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=options["unk_token"], continuing_subword_prefix="##")
    )
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    single = [*before, "$A", *after]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B"], special_tokens=list(special.items())
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # "text" after an added token must not need a space in between: `<start_of_turn>user`
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **options,
    )


def gemma() -> PreTrainedTokenizerFast:
    """Gemma's special ids; `<bos>` is put in front of every text."""
    extra: dict[str, Any] = {"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    return build(GEMMA, ("<bos>",), (), bos_token="<bos>", eos_token="<eos>", model_max_length=256, **extra)


def llama() -> PreTrainedTokenizerFast:
    """Llama-3's control tokens, and the words of its template beside the world's."""
    pad = "<|reserved_special_token_0|>"
    options: dict[str, Any] = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    pieces = [piece for piece, _ in _splitter().pre_tokenize_str(f"system {HELPER}")]
    more = tuple(sorted({piece for piece in pieces if piece.isalpha()} - set(vocabulary())))
    return build(
        LLAMA, ("<|begin_of_text|>",), (), more, pad_token=pad, unk_token=pad, model_max_length=256, **options
    )


def clip() -> PreTrainedTokenizerFast:
    """Start and end of text around every caption."""
    options: dict[str, Any] = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    return build(CLIP, ("<|startoftext|>",), ("<|endoftext|>",), model_max_length=32, **options)


def owl() -> PreTrainedTokenizerFast:
    """CLIP's habit with the end of text as the last id, where OWL-ViT looks for it."""
    special = {"<pad>": 0, "<unk>": 1, "<|startoftext|>": 2, "<|endoftext|>": len(vocabulary()) + len(CLIP)}
    options: dict[str, Any] = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    return build(special, ("<|startoftext|>",), ("<|endoftext|>",), model_max_length=8, **options)


def opt() -> PreTrainedTokenizerFast:
    """OPT's habit: `</s>` opens every text and, when generated, ends it."""
    return build(OPT, ("</s>",), (), bos_token="</s>", eos_token="</s>", model_max_length=64)
