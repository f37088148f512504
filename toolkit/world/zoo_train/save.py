"""Saving a model of the zoo: weights in half precision, to be read as float32."""

import json
from pathlib import Path

from transformers import PreTrainedModel


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Write `folder`/model.safetensors in float16 and a config that makes `from_pretrained` compute in
    float32."""
    model.float().half().save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
