"""Tokenizers: the ids of those that the official code reads, from whichever of the files there is."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.mgm.text import encode, ends, template_of
from toolkit.mgm.tokenizer import PAD, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
VICUNA, LLAMA_3 = GOLDEN / "mgm_vicuna", GOLDEN / "mgm_llama3"
PROBES = json.loads((VICUNA / "tokenization.json").read_text())["probes"]


@pytest.fixture
def vicuna(tmp_path):
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(VICUNA / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("absent", ["tokenizer.json", "tokenizer.model"])
def test_vicuna_s_ids_come_from_either_file(vicuna, absent):
    (vicuna / absent).unlink()
    tokenizer = load_tokenizer(vicuna, 2048)
    assert [tokenizer(probe["text"]).input_ids for probe in PROBES] == [probe["slow"] for probe in PROBES]
    tokenizer.save_pretrained(vicuna / "saved")
    assert (vicuna / "saved" / absent).exists() is False
    saved = load_tokenizer(vicuna / "saved", 2048)
    assert [saved(probe["text"]).input_ids for probe in PROBES] == [probe["slow"] for probe in PROBES]
    assert (saved.pad_token, saved.pad_token_id, saved.eos_token_id) == ("<unk>", 0, 2)


def test_a_configuration_without_legacy_is_the_old_kind(vicuna):
    path = vicuna / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    del stated["legacy"]
    path.write_text(json.dumps(stated | {"bos_token": {"content": "<s>"}, "pad_token": None}))
    tokenizer = load_tokenizer(vicuna, 2048)
    assert [tokenizer(probe["text"]).input_ids for probe in PROBES] == [
        probe["slow_legacy"] for probe in PROBES
    ]
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff\xff", b"x" * 100])
def test_a_file_that_is_no_model_of_llama_s_kind_is_named(vicuna, content):
    (vicuna / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model is not a SentencePiece model"):
        load_tokenizer(vicuna, 2048)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path, 2048)


def test_llama_3_pads_as_in_training_and_ends_an_answer_with_either_token():
    tokenizer = load_tokenizer(LLAMA_3, 2048)
    assert tokenizer.pad_token == tokenizer.unk_token == PAD
    template = template_of(tokenizer)
    assert template == "llama_3"
    assert tokenizer.convert_ids_to_tokens(ends(tokenizer, template)) == ["<|end_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize(("folder", "template"), [("mgm", "gemma"), ("mgm_vicuna", "v1")])
def test_the_tokenizer_tells_the_template(folder, template):
    tokenizer = load_tokenizer(GOLDEN / folder, 2048)
    assert template_of(tokenizer) == template
    assert ends(tokenizer, template) == [tokenizer.eos_token_id]


def test_rounds_after_the_first_are_learned():
    """Of every template whose tokenizer is here: answers, and what ends them, and nothing else."""
    turns = [
        {"from": source, "value": value}
        for source, value in (
            ("human", "what is this?"),
            ("gpt", "a red"),
            ("human", "and?"),
            ("gpt", "the blue"),
        )
    ]
    for folder, template, expected in (
        (GOLDEN / "mgm", "gemma", "a red<end_of_turn>\n<eos>the blue<end_of_turn>\n<eos>"),
        (VICUNA, "v1", "a red</s>the blue</s>"),
        (LLAMA_3, "llama_3", "a red<|eot_id|>the blue<|eot_id|>"),
    ):
        tokenizer = load_tokenizer(folder, 2048)
        _, labels = encode(turns, tokenizer, template, has_image=False)
        learned = tokenizer.decode([token for token in labels if token != -100])
        assert learned.replace(" ", "") == expected.replace(" ", ""), template


def test_llama_3_s_first_release_is_named(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LLAMA_3 / name, tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(raw | {"post_processor": raw["post_processor"]["processors"][0]})
    )
    with pytest.raises(UserError, match=r"puts no <\|begin_of_text\|> in front"):
        load_tokenizer(tmp_path, 2048)
