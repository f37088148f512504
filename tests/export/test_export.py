"""An exported folder is the model that it was made of, for somebody who has transformers alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from proved import prove
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from toolkit.__main__ import main
from toolkit.errors import UserError
from toolkit.export import card, proof
from toolkit.export.export import export
from toolkit.export.push import checked, summary
from toolkit.files import read_json, sha256, write_json
from toolkit.mgm.answer import Answerer
from toolkit.mgm.checkpoint import build, save_checkpoint
from toolkit.mgm.tokenizer import load_tokenizer

NEW = 8
WITHOUT_TOOLKIT = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "toolkit"]:
    del sys.modules[name]
"""
BATCH = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor
folder, questions, *images = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=[Image.open(image) for image in images], text=json.loads(questions)).to("cpu")
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
with torch.no_grad():
    logits, rounded = (each(**inputs).logits[:, -1].float() for each in (model, half))
off = float((logits - rounded).abs().max() / logits.std())
print(json.dumps([processor.batch_decode(ids), off, "toolkit" in sys.modules]))
"""


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """Somebody with transformers alone is a fork: the process of the fixture `exported` shows that the folder
    needs nothing else."""
    monkeypatch.setattr(proof.subprocess, "run", forks.run)
    # a fork has torchvision; what the folder's code imported of the toolkit would be there again
    monkeypatch.setattr(proof, "TORCHVISION", WITHOUT_TOOLKIT)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def checkpoint(parts, folder: Path) -> Path:
    """A model with random weights, larger ones than at a start so that answers depend on the image."""
    model = build(parts.llm, parts.clip, parts.convnext, seed=1, image_size_aux=128)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mm_projector" in name or "vlm_uni" in name:
                parameter.mul_(3)
    save_checkpoint(model, folder, load_tokenizer(parts.llm, 256), shard_bytes=400_000)
    return folder


@pytest.fixture(scope="module")
def source(parts, tmp_path_factory) -> Path:
    return checkpoint(parts, tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "mgm"
    assert main(["export", "--model", str(source), "--output", str(folder)]) == 0
    return folder


def test_the_proof_is_written_and_the_weights_are_the_same_files(source, exported):
    result = json.loads((exported / "proof.json").read_text())
    assert result["answers_equal"] == result["questions"] == 3
    assert result["max_logit_difference"] <= result["tolerance"] == 1e-4
    shards = sorted(path.name for path in source.glob("model-*.safetensors"))
    assert len(shards) > 1
    for name in shards:
        assert (exported / name).read_bytes() == (source / name).read_bytes()
    for path in exported.iterdir():  # whoever writes to the export must not change what was trained
        assert not (source / path.name).exists() or not path.samefile(source / path.name)
    assert "3 answers of the model that it was made of" in (exported / "README.md").read_text()


def test_the_folder_can_be_published_as_it_is(exported):
    export = checked(exported)
    assert export.files.keys() == {path.name for path in exported.iterdir()}
    assert export.licence == "gemma" and "look at it" not in summary(export, "me/mgm", public=False)


def test_several_questions_at_once_get_the_toolkits_answers(source, exported, tmp_path):
    questions = ["what is this?", "and which of the two words stands on it, large or small?"]
    images = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB")]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    command = [
        sys.executable,
        "-I",
        "-c",
        proof.TORCHVISION + BATCH,
        str(exported),
        json.dumps(questions),
        *files,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answers, off, imported = json.loads(done.stdout.splitlines()[-1])
    assert answers == Answerer(source, "cpu").answer(questions, images, NEW) and not imported
    assert 0 < off < 0.2  # in bfloat16, the type of the real models' files and then transformers' default


def test_a_llama_is_exported_too(llama_parts, forked, tmp_path):
    result = export(checkpoint(llama_parts, tmp_path / "model"), tmp_path / "out")
    assert result["answers_equal"] == 3
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    tokenizer = load_tokenizer(llama_parts.llm, 256)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.eos_token, "<|eot_id|>")]
    assert generation["eos_token_id"] == ids  # its answers end with a turn, too
    assert "license: llama3" in (tmp_path / "out/README.md").read_text()


def test_tokens_make_the_same_text(llama_parts, forked, tmp_path, monkeypatch):
    """Llama-3's tokenizer takes spaces out before marks."""
    llm = shutil.copytree(llama_parts.llm, tmp_path / "llm")
    stated = read_json(llm / "tokenizer_config.json") | {"clean_up_tokenization_spaces": True}
    write_json(llm / "tokenizer_config.json", stated)
    parts = SimpleNamespace(llm=llm, clip=llama_parts.clip, convnext=llama_parts.convnext)
    source = checkpoint(parts, tmp_path / "model")
    export(source, tmp_path / "out")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    ids = tokenizer(proof.SPELLED)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "It isn't the dog's, is it?"
    monkeypatch.setattr("toolkit.export.export.CLEANING", ())
    with pytest.raises(UserError, match='of the same tokens it makes the text "It is n'):
        export(source, tmp_path / "other")


def test_another_model_under_the_same_name_is_found(source, exported, forked, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = next(
        path for path in folder.glob("model-*.safetensors") if "model.norm.weight" in load_file(path)
    )
    tensors = load_file(shard)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is not its source: logits differ by .* standard deviations"):
        proof.prove(source, folder)
    (folder / "mining.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(UserError, match=r"cannot be loaded with transformers alone: RuntimeError: no"):
        proof.prove(source, folder)


def test_what_fails_leaves_no_folder(source, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "prove", lambda *_: (_ for _ in ()).throw(UserError("the proof failed")))
    with pytest.raises(UserError, match="the proof failed"):
        export(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(source, exported, tmp_path):
    with pytest.raises(UserError, match="exists: name a folder that does not"):
        export(source, exported)
    with pytest.raises(UserError, match="holds no checkpoint in safetensors: merge the model first"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="none is not a folder"):
        export(tmp_path / "none", tmp_path / "out")


@pytest.fixture
def trained(source, exported, tmp_path, monkeypatch) -> Path:
    """A merged finetuning folder in the kit's place; its export is not proved again."""
    model = tmp_path / "training_dirs/MGM-Tiny-Finetune-x"
    shutil.copytree(source, model / "merged")
    record = {"settings": {"scale": "tiny", "seed": 7}, "results": {"rows": 1000, "steps": 125}}
    (model / "run.json").write_text(json.dumps(record))
    prove(model)
    proved = json.loads((exported / "proof.json").read_text())
    monkeypatch.setattr(proof, "prove", lambda *_: proved)
    return model


def scored(model: Path, benchmark: str, digest: str) -> None:
    """A score.json of the weights whose proof has this SHA-256."""
    path = model.parents[1] / "eval_results" / model.name / benchmark / "score.json"
    write_json(path, {"accuracy": 12.5, "model": {"name": model.name, "merge_sha256": digest}})


@pytest.mark.parametrize("part", [".", "merged"])
def test_the_card_has_what_the_records_say(trained, tmp_path, part):
    scored(trained, "textvqa", sha256(trained / "merge.json"))
    export(trained / part, tmp_path / "out")
    written = ModelCard.load(tmp_path / "out/README.md")
    assert written.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "license": "apache-2.0",  # of the embedded world, as its code
        "language": "en",
        "tags": ["mgm", "mini-gemini", "better-synth"],
    }
    text = written.text
    assert "- scale: tiny" in text and "- seed: 7" in text and "| TextVQA | 12.50 |" in text
    assert 'folder = "out"' in text and "# MGM-Tiny-Finetune-x" in text


def test_scores_of_other_weights_are_not_in_the_card(trained, tmp_path):
    scored(trained, "textvqa", "0" * 64)
    export(trained, tmp_path / "out")
    assert "## Scores" not in (tmp_path / "out/README.md").read_text()


def test_the_card_of_a_model_that_lies_at_the_root_of_the_disk(exported):
    proved = json.loads((exported / "proof.json").read_text())
    assert "# model\n" in (written := card.card(Path("/model"), exported, proved))
    assert "trained with the Better Synth toolkit" not in written  # nothing says so
    assert "# mgm\n" in card.card(Path("/mgm/merged"), exported, proved)
