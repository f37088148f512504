"""Images drawn from captions by a diffusion model, as rows beside the originals.

    - text_to_image_mapper:
        hf_diffusion: "{diffusion}"
        num_inference_steps: 30
        guidance_scale: 5.0

The package diffusers is not among the locked packages, and no model of the registry draws: who wants this
step puts both in place.
"""

import importlib.util
from pathlib import Path
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper

from toolkit.data.augment import generator, with_generated
from toolkit.data.samples import caption_of

from .image_augmentation_mapper import save

NAME = "text_to_image_mapper"
INDEX = "model_index.json"  # of a diffusers model's folder


@OPERATORS.register_module(NAME)
class TextToImageMapper(Mapper):
    """Add a row with the same caption and an image drawn from it.

    `hf_diffusion`: the folder of any text-to-image model of diffusers. `width` and `height` in pixels. The
    noise that an image starts from follows from the caption and `seed`, and each image is drawn alone: equal
    captions give equal images, whatever rows come with them. `keep_original_sample`: keep the row as it was
    beside the new row. The toolkit sets `save_dir`.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "text"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_diffusion: str = "stabilityai/stable-diffusion-3-medium-diffusers",
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        width: int = 512,
        height: int = 512,
        seed: int = 0,
        keep_original_sample: bool = True,
        save_dir: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if importlib.util.find_spec("diffusers") is None:
            raise ValueError(
                "the package diffusers is not installed: install it beside the locked packages, or take the "
                "step out"
            )
        if not (Path(hf_diffusion) / INDEX).is_file():
            raise ValueError(f"{hf_diffusion} is not a folder of a diffusers model: it has no {INDEX}")
        self.hf_diffusion, self.seed, self.keep_original_sample, self.save_dir = (
            hf_diffusion,
            seed,
            keep_original_sample,
            save_dir,
        )
        self.settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "width": width,
            "height": height,
        }
        self.pipeline: Any = None

    def process_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Draw the images and add the rows."""
        import torch
        from diffusers import AutoPipelineForText2Image

        if self.pipeline is None:
            device = f"cuda:{rank or 0}" if self.use_cuda() else "cpu"
            dtype = torch.bfloat16 if self.use_cuda() else torch.float32
            loaded = AutoPipelineForText2Image.from_pretrained(
                self.hf_diffusion, torch_dtype=dtype, local_files_only=True
            )
            loaded.set_progress_bar_config(disable=True)
            self.pipeline = loaded.to(device)
        generated = []
        for text in samples[self.text_key]:
            caption = caption_of(text)
            # On the CPU: a GPU's generator gives other numbers.
            noise = torch.Generator("cpu").manual_seed(
                int(generator(self.seed, NAME, caption).integers(2**63))
            )
            image = self.pipeline(prompt=caption, generator=noise, **self.settings).images[0]
            generated.append([{self.image_key: [save(image.convert("RGB"), self.save_dir)]}])
        return with_generated(samples, generated, self.keep_original_sample)
