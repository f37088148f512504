"""Random models: the files of the published ones, their sizes, words only; the same bytes again."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig

from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.mgm.checkpoint import build
from toolkit.rehearsal.models import SIZES, ZOO, describe, write

# parameters of the published models, in thousands (facts of their model cards' safetensors)
PARAMETERS = {"gemma": 2_506_172, "clip": 427_944, "captioner": 3_744_762}


def shapes(folder):
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as handle:
        return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """All of them at the embedded world's sizes."""
    root = tmp_path_factory.mktemp("models")
    for model in SIZES:
        write(model, root / model, {})
    return root


@pytest.mark.parametrize("model", SIZES)
def test_the_files_are_those_of_the_real_model(models, model):
    assert shapes(models / model) == shapes(ZOO / model)
    for path in (ZOO / model).glob("*.json"):
        assert json.loads((models / model / path.name).read_text()) == json.loads(path.read_text())


def test_the_same_bytes_again(models, tmp_path):
    write("clip", tmp_path / "clip", {})
    assert sha256(tmp_path / "clip/model.safetensors") == sha256(models / "clip/model.safetensors")


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_sizes_are_the_published_ones(model, tmp_path):
    import transformers

    tmp_path.mkdir(exist_ok=True)
    describe(model, tmp_path, SIZES[model])
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        built = getattr(transformers, config.architectures[0])(config)
    assert round(sum(p.numel() for p in built.parameters()) / 1000) == PARAMETERS[model]


def test_mgm_is_built_of_them(models):
    model = build(
        models / "gemma",
        models / "clip",
        models / "convnext",
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=1,
        image_size_aux=128,
        image_aspect_ratio="pad",
        model_max_length=256,
    )
    assert model.config.hidden_act == "gelu"  # exact, as in the official code


def test_control_tokens_and_those_beyond_the_tokenizer_are_never_the_likeliest(tmp_path):
    write("gemma", tmp_path, {"config.json": {"vocab_size": 512}})
    lengths = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].float().norm(dim=1)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    control = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    short = torch.zeros(512, dtype=torch.bool)
    short[control] = short[tokenizer.get_vocab_size() :] = True
    assert len(control) > 3 and short.sum() > 100
    assert lengths[short].max() < 0.2 < 0.7 < lengths[~short].min()


def test_an_unknown_model_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="choose one of gemma, clip, convnext, captioner"):
        write("llama", tmp_path)
