"""Small random models in the formats of the real ones, a small seed set, and `python -m toolkit data …` as a
process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forks
import numpy as np
from PIL import Image

from toolkit.contest.records import write_record

ROOT = Path(__file__).parents[2]
WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "mug",
    "box",
    "ball",
    "star",
    "left",
    "right",
    "of",
    "sign",
    "reads",
    "nova",
    "tree",
    "on",
    "the",
]


def run_python(*arguments: object) -> subprocess.CompletedProcess:
    """Run Python in the project's root on one thread a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_data(*arguments: object) -> subprocess.CompletedProcess:
    """Run `python -m toolkit data …` in a process of its own."""
    return forks.run([sys.executable, "-m", "toolkit", "data", *arguments])


def columns(rows: list[dict]) -> dict[str, list]:
    """`rows` as an operator gets them."""
    return {
        "text": [row["text"] for row in rows],
        "images": [row["images"] for row in rows],
        "__dj__stats__": [{} for _ in rows],
    }


def picture(path: Path, number: int, size: int = 64) -> None:
    """A JPEG of coarse random squares, its own for every number."""
    squares = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(squares).resize((size, size), Image.Resampling.NEAREST).save(path, quality=90)


def seed_row(number: int, caption: str) -> dict:
    """A row of the seed's form for image `number`."""
    path = f"images/00000/{number:09d}.jpg"
    return {"id": f"{number:09d}", "text": f"<__dj__image>\n{caption} <|__dj__eoc|>", "images": [path]}


def seed_set(folder: Path, count: int) -> list[dict]:
    """`count` valid rows with their images under `folder`; also `stage_1.json` there."""
    random = np.random.default_rng(0)
    rows = [seed_row(number, " ".join(random.choice(WORDS, 3 + number % 5))) for number in range(count)]
    for number, row in enumerate(rows):
        picture(folder / row["images"][0], number)
    original = [
        {
            "id": row["id"],
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": "x"},
            ],
        }
        for row in rows
    ]
    (folder / "stage_1.json").write_text(json.dumps(original))
    return rows


def write_rows(path: Path, rows: list) -> Path:
    """One line a row; a string is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    )
    return path


def clip_model(folder: Path) -> Path:
    """A random CLIP of the HF format, 32 px, with its processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = _words(folder, bos="<s>", eos="</s>", pad="</s>")
    torch.manual_seed(0)
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": 16,
    }
    text = {
        **common,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**common, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def captioner_model(folder: Path) -> Path:
    """A random BLIP-2 of the HF format, 28 px, with its processor."""
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    tokenizer = _words(folder, bos="</s>", eos="</s>", pad="<pad>", more=["<image>"])
    torch.manual_seed(1)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "init_std": 0.3,  # random weights of this spread caption different images differently
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    configuration = Blip2Config(
        vision_config={**size, "image_size": 28, "patch_size": 7, "initializer_range": 0.3},
        qformer_config={**size, "encoder_hidden_size": 32, "vocab_size": 8, "initializer_range": 0.3},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.3,
    )
    Blip2ForConditionalGeneration(configuration).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    Blip2Processor(image_processor=images, tokenizer=tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def matcher_model(folder: Path) -> Path:
    """A random BLIP for matching of the HF format, 32 px, with its processor."""
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    tokenizer = _words(folder, bos="[CLS]", eos="[SEP]", pad="[PAD]")
    torch.manual_seed(2)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
    }
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "encoder_hidden_size": 32}
    text |= {
        "bos_token_id": tokenizer.bos_token_id,
        "sep_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**size, "image_size": 32, "patch_size": 8}
    BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    ).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def chat_model(folder: Path) -> Path:
    """A random LLaVA of the HF format, 32 px, with its processor and a chat template."""
    import torch
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _words(folder, bos="<s>", eos="</s>", pad="<pad>", more=["<image>"])
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**size, **ends, "model_type": "llama", "vocab_size": len(tokenizer), "initializer_range": 0.5}
    configuration = LlavaConfig(
        vision_config={
            **size,
            "model_type": "clip_vision_model",
            "image_size": 32,
            "patch_size": 8,
            "initializer_factor": 10.0,
        },
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(configuration)
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(20)  # random weights of this spread caption different images differently
    model.save_pretrained(folder)
    template = "{% for message in messages %}{% for part in message.content %}"
    template += (
        "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}the sign reads"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def _words(folder: Path, bos: str, eos: str, pad: str, more: list[str] | None = None):
    """A tokenizer with one token a word, that puts `bos` first and, for CLIP, `eos` last."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens = list(dict.fromkeys([bos, eos, pad, "<unk>", *(more or []), *WORDS]))
    tokenizer = Tokenizer(
        WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    ends = [(token, tokens.index(token)) for token in dict.fromkeys([bos, eos])]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}" if bos != eos else f"{bos} $A", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token="<unk>",
        additional_special_tokens=more or [],
    )


def record(path: Path, outputs: dict[str, Path], results: dict) -> None:
    """A run.json of `data synthesize`, as far as it is read."""
    write_record(path, "synthesize", inputs={}, outputs=outputs, settings={}, results=results)
