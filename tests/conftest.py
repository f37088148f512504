"""Tiny random models and samples that several packages' tests share; all sizes come from tests/golden/mgm."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from PIL import Image

# the same examples everywhere, however slow the machine is
hypothesis_settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
hypothesis_settings.load_profile("fixed")

GOLDEN = Path(__file__).parent / "golden" / "mgm"


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders of a tiny random Gemma, CLIP and ConvNeXt in the formats of the real ones: .llm, .clip,
    .convnext."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("parts")
    meta = json.loads((GOLDEN / "meta.json").read_text())
    weights = load_file(GOLDEN / "weights.safetensors")

    def write(name, prefix, new, config):
        folder = root / name
        folder.mkdir()
        tensors = {
            new + key.removeprefix(prefix): value.clone()
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        save_file(
            tensors, folder / ("open_clip_model.safetensors" if name == "convnext" else "model.safetensors")
        )
        (folder / ("open_clip_config.json" if name == "convnext" else "config.json")).write_text(
            json.dumps(config)
        )
        return folder

    clip = write("clip", "model.vision_tower.vision_tower.", "", meta["tiny_clip_config"])
    convnext = write(
        "convnext", "model.vision_tower_aux.vision_", "visual.trunk.", meta["tiny_openclip_config"]
    )
    llm = root / "llm"
    llm.mkdir()
    gemma = {
        k: v.clone()
        for k, v in weights.items()
        if k.startswith(("model.embed_tokens", "model.layers", "model.norm"))
    }
    save_file(gemma, llm / "model.safetensors")
    (llm / "config.json").write_text(json.dumps(meta["tiny_gemma_config"]))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (llm / name).write_bytes((GOLDEN / name).read_bytes())
    return SimpleNamespace(llm=llm, clip=clip, convnext=convnext)


@pytest.fixture(scope="session")
def llama_parts(parts, tmp_path_factory):
    """As `parts`, with a tiny random Llama whose output layer is its own, and Llama-3's tokenizer."""
    from safetensors.torch import load_file, save_file

    golden, llm = GOLDEN.parent / "mgm_llama3", tmp_path_factory.mktemp("llama")
    names = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
    tensors = load_file(golden / "weights.safetensors")
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(names)},
        llm / "model.safetensors",
    )
    meta = json.loads((golden / "meta.json").read_text())
    (llm / "config.json").write_text(json.dumps(meta["tiny_llama_config"]))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (llm / name).write_bytes((golden / name).read_bytes())
    return SimpleNamespace(llm=llm, clip=parts.clip, convnext=parts.convnext)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    """60 LLaVA samples, every fifth without an image: .samples (json), .images (folder)."""
    root = tmp_path_factory.mktemp("conversations")
    random = np.random.default_rng(0)
    rows = []
    for number in range(60):
        row = {
            "id": f"{number:09d}",
            "conversations": [{"from": "human", "value": "what is 2+2?"}, {"from": "gpt", "value": "4"}],
        }
        if number % 5:
            name = f"{number}.jpg"
            size = (int(random.integers(40, 90)), int(random.integers(40, 90)))
            Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / name)
            row["image"] = name
            row["conversations"] = [
                {"from": "human", "value": "<image>\nwhat is this?"},
                {"from": "gpt", "value": f"a {('red', 'blue')[number % 2]} image"},
            ]
        rows.append(row)
    (root / "samples.json").write_text(json.dumps(rows))
    return SimpleNamespace(samples=root / "samples.json", images=root)
