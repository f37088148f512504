"""Captions a second: the project's operator against the way in which Data-Juicer's `image_captioning_mapper`
calls the same model.

    PYTHONPATH=. python tests/bench/bench_captioner.py [--images 4096] [--folder FOLDER]

The model has the architecture and size of BLIP-2 OPT-2.7B and random weights, made on the spot; without a GPU
it is a small one, so that the command can be tried. The images are the JPEGs of FOLDER, or photograph-like
noise of 400 x 370 pixels drawn on the spot, several times over. Both write 12 new tokens for every image, and
both read, decode and resize the JPEGs in the time that is measured. The stock way: one image at a time in
float32, sampled. `--json FILE` writes the figures.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toolkit.files import write_json

NEW_TOKENS = 12
PICTURE = (400, 370)  # pixels, the mean size of the contest's seed images


def draw(folder: Path, count: int) -> list[Path]:
    """`count` JPEG files of smooth noise with grain, some 40 KB each."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 26, 3), dtype=np.uint8)).resize(
            PICTURE, Image.Resampling.BICUBIC
        )
        grain = np.clip(np.asarray(coarse) + random.normal(0, 9, (PICTURE[1], PICTURE[0], 1)), 0, 255).astype(
            np.uint8
        )
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(grain).save(paths[-1], quality=90)
    return paths


def save_model(folder: Path, small: bool, device: str) -> None:
    """A BLIP-2 with random weights that never ends a caption early, its processor and a tokenizer of
    letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
    )

    vocabulary = 2048 if small else 50304
    words = [f"w{number} " for number in range(vocabulary - 1)]
    words[:3], end = ["<s>", "<pad>", "</s>"], "<image>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            WordLevel({word: number for number, word in enumerate([*words, end])}, unk_token="<pad>")
        ),
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    width = {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
    }
    if not small:  # OPT-2.7B
        width = {
            "hidden_size": 2560,
            "ffn_dim": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2560,
        }
    text = OPTConfig(vocab_size=vocabulary, bos_token_id=2, eos_token_id=None, pad_token_id=1, **width)
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    # otherwise the defaults, which are BLIP-2's: ViT-g, 39 layers of width 1408
    vision = {**tiny, "image_size": 112} if small else {}
    former = {**tiny, "encoder_hidden_size": 64} if small else {}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=former,
        text_config=text.to_dict(),
        image_token_index=vocabulary - 1,
    )
    with torch.device(device):
        torch.manual_seed(0)
        model = Blip2ForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    size = 112 if small else 224
    Blip2Processor(
        BlipImageProcessor(size={"height": size, "width": size}), tokenizer, num_query_tokens=32
    ).save_pretrained(folder)


def stock(model_folder: Path, paths: list[Path], device: str) -> float:
    """Images a second of the calls that the stock operator makes for a row with one image."""
    from data_juicer.utils.mm_utils import load_image
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(model_folder)

    def caption(path: Path) -> None:
        inputs = processor(images=[load_image(str(path))], text=None, return_tensors="pt").to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=True)
        processor.batch_decode(tokens, skip_special_tokens=True)

    for path in paths[:3]:
        caption(path)
    start = time.perf_counter()
    for path in paths:
        caption(path)
    return len(paths) / (time.perf_counter() - start)


def ours(
    model_folder: Path, paths: list[Path], rows_at_once: int | None, **arguments: object
) -> tuple[float, bool]:
    """Images a second of the operator, its workers' start included, and whether a second run gave the same
    captions."""
    from toolkit.data.operators.batched_captioning_mapper import BatchedCaptioningMapper

    operator = BatchedCaptioningMapper(
        hf_img2seq=str(model_folder), max_new_tokens=NEW_TOKENS, rows_at_once=rows_at_once, **arguments
    )

    def run(some: list[Path]) -> list[str]:
        return operator.process_batched(
            {"text": ["<__dj__image>"] * len(some), "images": [[str(path)] for path in some]}
        )["text"]

    run(paths[: operator.rows_at_once])  # loads the model and compiles kernels
    start = time.perf_counter()
    captions = run(paths)
    seconds = time.perf_counter() - start
    again = run(paths[: 2 * operator.rows_at_once][::-1])[::-1]  # other neighbours
    return len(paths) / seconds, again == captions[: len(again)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, help="captioned by the operator (default: 4096, without a GPU 64)"
    )
    parser.add_argument("--stock-images", type=int, default=24, help="captioned in the stock way (24)")
    parser.add_argument("--folder", type=Path, help="JPEG files to caption instead of drawn ones")
    parser.add_argument("--rows-at-once", type=int, help="of the operator (default: its own)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, images = ("cuda" if gpu else "cpu"), arguments.images or (4096 if gpu else 64)
    if not gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = (
            sorted(arguments.folder.rglob("*.jpg")) if arguments.folder else draw(folder, min(images, 512))
        )
        if not files:
            sys.exit(f"nothing measured: {arguments.folder} holds no .jpg file")
        paths = (files * -(-images // len(files)))[:images]
        save_model(folder / "model", small=not gpu, device=device)
        kilobytes = sum(path.stat().st_size for path in files) / len(files) / 1e3
        name = torch.cuda.get_device_name() if gpu else "CPU, a small model"
        print(f"{name}; {len(files)} JPEG files of {kilobytes:.0f} KB", flush=True)
        actual: dict[str, object] = {
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "new_tokens": NEW_TOKENS,
            "images": images,
        }
        actual["greedy"], actual["repeatable"] = ours(folder / "model", paths, arguments.rows_at_once)
        print(
            f"operator, greedy: {actual['greedy']:.1f} images/s, the same captions again: "
            f"{actual['repeatable']}",
            flush=True,
        )
        actual["sampled"], actual["sampled_repeatable"] = ours(
            folder / "model", paths, arguments.rows_at_once, temperature=1.0
        )
        print(
            f"operator, sampled: {actual['sampled']:.1f} images/s, the same captions again: "
            f"{actual['sampled_repeatable']}",
            flush=True,
        )
        if gpu:
            from data_juicer.utils.model_utils import free_models

            free_models()
        actual["stock"] = stock(folder / "model", paths[: arguments.stock_images], device)
        actual["ratio"] = actual["greedy"] / actual["stock"]
        print(f"stock way: {actual['stock']:.2f} images/s\nratio: {actual['ratio']:.1f}", flush=True)
    if arguments.json:
        write_json(arguments.json, actual)


if __name__ == "__main__":
    main()
