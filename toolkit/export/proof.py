"""Whether an exported folder is the model that it was made of: both answer the same fixed questions,
the export loaded as a stranger would, in a process of its own without this toolkit and without network."""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from toolkit import torchvision_cpu
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.mgm.answer import answer_text
from toolkit.mgm.checkpoint import load_checkpoint
from toolkit.mgm.generate import ROUNDING
from toolkit.mgm.processor import preprocess
from toolkit.mgm.text import ends, question_prompt, template_of, tokenize
from toolkit.mgm.tokenizer import load_tokenizer

QUESTIONS = (
    "What is shown?",
    "Which word stands on the sign?",
    "How many objects are red, none, one or more?",
)
SPELLED = "It is n't the dog 's , is it ?"  # some tokenizers take spaces out when they make text of tokens
SIZES = ((640, 480), (300, 500), (336, 336))  # of the images, drawn by SEED
SEED, NEW_TOKENS = 1024, 16
SECONDS = 3600
# without CUDA the torchvision of this environment could not be imported
TORCHVISION = f"{inspect.getsource(torchvision_cpu.declare)}\ndeclare()\n"
STRANGER = """
import json, sys
from PIL import Image
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoProcessor

folder, work, questions, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
texts = []
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
results = {}
for number, question in enumerate(questions):
    given = processor(images=Image.open(f"{work}/{number}.png"), text=question)
    with torch.no_grad():
        results[f"logits {number}"] = model(**given).logits[0, -1].contiguous()
    results[f"ids {number}"] = model.generate(**given, max_new_tokens=tokens, do_sample=False)[0].contiguous()
    texts.append(processor.decode(results[f"ids {number}"]))
texts.append(processor.decode(processor.tokenizer(sys.argv[5])["input_ids"]))
assert "toolkit" not in sys.modules
with open(f"{work}/texts.json", "w", encoding="utf-8") as handle:
    json.dump(texts, handle)
save_file(results, f"{work}/results.safetensors")
"""


def prove(source: Path, exported: Path) -> dict[str, Any]:
    """`{questions, new_tokens, max_logit_difference, tolerance, answers_equal, dtype, …}`. The difference
    is in standard deviations of the logits, in float32 on the CPU. UserError when it exceeds the rounding of
    kernels, an answer or the text made of it differs, or the export cannot be loaded."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for number, image in enumerate(images()):
            image.save(work / f"{number}.png")
        theirs, their_texts = _strangers(exported.resolve(), work)
    ours, our_texts = _sources(source)
    differences = [
        float(
            (ours[f"logits {number}"] - theirs[f"logits {number}"]).abs().max()
            / ours[f"logits {number}"].std()
        )
        for number in range(len(QUESTIONS))
    ]
    equal = sum(
        ours[f"ids {number}"].tolist() == theirs[f"ids {number}"].tolist() for number in range(len(QUESTIONS))
    )
    result = {
        "questions": len(QUESTIONS),
        "new_tokens": NEW_TOKENS,
        "max_logit_difference": max(differences),
        "tolerance": ROUNDING[torch.float32],
        "answers_equal": equal,
        "dtype": "float32",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if not max(differences) <= ROUNDING[torch.float32] or equal != len(QUESTIONS):
        raise UserError(
            f"the exported model is not its source: logits differ by {max(differences):.2g} standard "
            f"deviations, at most {result['tolerance']} are allowed, and {equal} of "
            f"{len(QUESTIONS)} answers are equal"
        )
    for our_text, their_text in zip(our_texts, their_texts, strict=True):
        if our_text != their_text:
            raise UserError(
                f"the exported model is not its source: of the same tokens it makes the text {their_text!r}, "
                f"the source {our_text!r}"
            )
    return result


def images() -> list[Image.Image]:
    """Fixed pictures: smooth colours with a coarse pattern."""
    draw = np.random.default_rng(SEED)
    coarse = [draw.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in SIZES]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(coarse, SIZES, strict=True)
    ]


def _sources(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Logits and ids that the source gives, and the texts, through this toolkit's own code."""
    model = load_checkpoint(folder)
    tokenizer = load_tokenizer(folder, model.mgm.model_max_length)
    template = template_of(tokenizer)
    results: dict[str, torch.Tensor] = {}
    texts = []
    for number, (question, image) in enumerate(zip(QUESTIONS, images(), strict=True)):
        ids = torch.tensor([tokenize(question_prompt(question, template), tokenizer)])
        low, high = (tensor[None] for tensor in preprocess(image, model.mgm))
        with torch.inference_mode():
            results[f"logits {number}"] = model.logits(model.splice(ids, None, None, low, high))[0, -1]
        results[f"ids {number}"] = model.greedy(ids, None, low, high, NEW_TOKENS, ends(tokenizer, template))[
            0
        ]
        texts.append(answer_text(tokenizer, results[f"ids {number}"].tolist()))
    return results, [*texts, answer_text(tokenizer, tokenizer(SPELLED)["input_ids"])]


def _strangers(folder: Path, work: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The same of a process that knows transformers and the folder alone."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "LD_LIBRARY_PATH") if key in os.environ}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HOME": str(work / "home"),
    }
    command = [
        sys.executable,
        "-I",
        "-c",
        TORCHVISION + STRANGER,
        str(folder),
        str(work),
        json.dumps(QUESTIONS),
        str(NEW_TOKENS),
        SPELLED,
    ]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"the exported model cannot be loaded with transformers alone: {lines[-1]}")
    return load_file(work / "results.safetensors"), read_json(work / "texts.json")
