"""Tokenizers as training sets them up, with the ids of those that the official code uses.

Gemma's and Llama-3's are tokenizer.json as it is. Vicuna's is Llama's SentencePiece model as transformers
4.38 reads it without the tokenizers library: a space is put in front of every text, also of one that begins
with a space, where current versions put none. So the steps around its vocabulary are put together here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges
from transformers.utils.sentencepiece_model_pb2_new import ModelProto  # type: ignore[attr-defined]

from toolkit.errors import UserError
from toolkit.files import atomic, read_bytes, read_json, write_json
from toolkit.mgm.folder import SENTENCEPIECE

SPACE = "▁"
MODEL_BYTES = 1 << 24  # Gemma's has 4 MB
PAD = "<|reserved_special_token_0|>"  # what the official code pads with where there is such a token: Llama-3
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # Llama's defaults


@dataclass(frozen=True)
class Vocabulary:
    """Pieces with their ids and merges in their order; content of tokenizer.model, where it was read."""

    pieces: dict[str, int]
    merges: list[tuple[str, str]]
    model: bytes | None


class LlamaTokenizer(PreTrainedTokenizerFast):
    """Llama's SentencePiece tokenizer; `stated` is its tokenizer_config.json."""

    vocabulary: Vocabulary
    stated: dict[str, Any]

    def restated(self, **changes: Any) -> "LlamaTokenizer":
        """The tokenizer that these changes of its tokenizer_config.json make."""
        return llama(self.vocabulary, self.stated | changes)

    def save_pretrained(self, save_directory: str | PathLike[str], *_: Any, **__: Any) -> tuple[str, ...]:
        """tokenizer_config.json, and tokenizer.model where that was read, by which the official code reads it
        too."""
        folder = Path(save_directory)
        path = folder / (SENTENCEPIECE if self.vocabulary.model else "tokenizer.json")
        with atomic(path) as temporary:
            temporary.write_bytes(self.vocabulary.model or self.backend_tokenizer.to_str().encode())
        write_json(folder / "tokenizer_config.json", self.stated)
        return str(path), str(folder / "tokenizer_config.json")


def load_tokenizer(folder: Path | str, max_length: int) -> PreTrainedTokenizerBase:
    """Tokenizer of a language model's or MGM's folder, set up as in training: padding on the right,
    `max_length` tokens at most. UserError for one that cannot be read."""
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    stated = read_json(path) if path.is_file() else {}
    if not isinstance(stated, dict):
        raise UserError(f"{path} is not a JSON object")
    files = [name for name in (SENTENCEPIECE, "tokenizer.json") if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder} holds neither tokenizer.json nor {SENTENCEPIECE}")
    options: dict[str, Any] = {"padding_side": "right", "model_max_length": max_length}
    if stated.get("clean_up_tokenization_spaces"):  # current versions obey it under this name only
        options["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
    try:
        if files == [SENTENCEPIECE] or str(stated.get("tokenizer_class")).startswith("Llama"):
            return llama(vocabulary(folder / files[0]), stated | options)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f"{folder} holds a tokenizer that cannot be read: {error}") from None
    if PAD in tokenizer.get_vocab():
        tokenizer.unk_token = tokenizer.pad_token = PAD
        if tokenizer("").input_ids != [
            tokenizer.bos_token_id
        ]:  # Llama-3's first release: all would be masked
            raise UserError(
                f"{folder}/tokenizer.json puts no {tokenizer.bos_token} in front of a text: take the model's "
                "current revision"
            )
    if tokenizer.pad_token is None:
        raise UserError(f"{folder} holds a tokenizer without a token for padding")
    return tokenizer


def vocabulary(path: Path) -> Vocabulary:
    """The pieces of Llama's tokenizer.model or tokenizer.json; UserError for a model of another kind."""
    if path.name != SENTENCEPIECE:
        model = read_json(path)["model"]
        return Vocabulary(model["vocab"], [tuple(pair) for pair in model["merges"]], None)
    content, proto = read_bytes(path, MODEL_BYTES), ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise UserError(f"{path} is not a SentencePiece model") from None
    trained, normal = proto.trainer_spec, proto.normalizer_spec
    if (
        trained.model_type != trained.BPE
        or not trained.byte_fallback
        or normal.precompiled_charsmap
        or normal.remove_extra_whitespaces
    ):
        raise UserError(
            f"{path} is not a SentencePiece model of Llama's kind: byte pairs, bytes, text as it is"
        )
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    return Vocabulary(pieces, generate_merges(pieces), content)


def llama(vocabulary: Vocabulary, stated: Mapping[str, Any]) -> LlamaTokenizer:
    """Llama's tokenizer with the settings of a tokenizer_config.json.

    `legacy`, by default true, puts the space in front of what follows a special token, too. Padding is <unk>.
    """
    roles = {role: _content(stated.get(role)) or default for role, default in ROLES.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary.pieces, vocabulary.merges, fuse_unk=True, byte_fallback=True))
    added = stated.get("added_tokens_decoder") or {}
    tokens = [*roles.values(), *(_content(added[key]) for key in sorted(added, key=int))]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(tokens)]
    )
    legacy = stated.get("legacy") is not False
    spaces = normalizers.Replace(" ", SPACE)
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([spaces, normalizers.Prepend(SPACE)])
    else:
        # there are no blanks any more, so that one comes in front whatever the text begins with
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", "first", split=False),
                pre_tokenizers.Metaspace(SPACE, "never", split=False),
            ]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    begin = [roles["bos_token"]] if stated.get("add_bos_token", True) else []
    end = [roles["eos_token"]] if stated.get("add_eos_token", False) else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *end, *begin, "$B", *end],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*begin, *end)],
    )
    fast = LlamaTokenizer(
        tokenizer_object=tokenizer,
        **roles,
        pad_token=roles["unk_token"],
        padding_side=stated.get("padding_side", "right"),
        model_max_length=stated["model_max_length"],
        clean_up_tokenization_spaces=False,
        legacy=legacy,
    )
    fast.vocabulary, fast.stated = (
        vocabulary,
        {
            **stated,
            "legacy": legacy,
            "pad_token": roles["unk_token"],
            "tokenizer_class": "LlamaTokenizer",
        },
    )
    return fast


def _content(token: Any) -> str | None:
    """The text of a token as tokenizer_config.json writes it: itself, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
