"""Images from captions: what is missing is said in one sentence; with diffusers installed, a tiny random
Stable Diffusion draws."""

import importlib.util
from pathlib import Path

import pytest
from test_data_synthesize import synthesize
from tiny_data import seed_set

from toolkit.data.operators.text_to_image_mapper import TextToImageMapper
from toolkit.data.samples import text_of

INSTALLED = importlib.util.find_spec("diffusers") is not None


@pytest.mark.skipif(INSTALLED, reason="diffusers is installed")
def test_the_recipe_check_says_that_the_package_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = 'process:\n  - text_to_image_mapper: {hf_diffusion: "{diffusion}"}\n'
    assert synthesize(tmp_path, recipe, seed_set(tmp_path, 1), "--model", f"diffusion={tmp_path}") == 1
    assert (
        "step 1, text_to_image_mapper: it refuses its arguments: the package diffusers is not installed"
        in capsys.readouterr().err
    )


@pytest.mark.skipif(not INSTALLED, reason="diffusers is not installed")
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder of a diffusers model"):
        TextToImageMapper(hf_diffusion=str(tmp_path))


def stable_diffusion(folder: Path) -> Path:
    """A random Stable Diffusion of a few thousand weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tiny_data import clip_model
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    tokenizer = AutoTokenizer.from_pretrained(clip_model(folder / "clip"))
    tokenizer.model_max_length = 16
    torch.manual_seed(0)
    size = {"block_out_channels": (32, 64), "sample_size": 8}
    unet = UNet2DConditionModel(
        **size, layers_per_block=1, in_channels=4, out_channels=4, cross_attention_dim=32, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=8, sample_size=16,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=2, max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


@pytest.mark.skipif(not INSTALLED, reason="diffusers is not installed")
def test_an_image_follows_from_caption_and_seed(tmp_path: Path, offline: None) -> None:
    model = stable_diffusion(tmp_path)

    def draw(captions: list[str], **arguments: int) -> list[str]:
        operator = TextToImageMapper(
            hf_diffusion=str(model),
            num_inference_steps=2,
            width=32,
            height=32,
            save_dir=str(tmp_path / "new"),
            **arguments,
        )
        batch = {
            "text": [text_of(caption) for caption in captions],
            "images": [["/old.jpg"] for _ in captions],
        }
        produced = operator.process_batched(batch)
        assert (
            produced["text"] == [text for text in batch["text"] for _ in range(2)]
            and produced["images"][::2] == batch["images"]
        )
        return [Path(paths[0]).name for paths in produced["images"][1::2]]

    names = draw(["a red mug", "a blue box", "a red mug"])
    assert names[0] == names[2] != names[1] and len(list((tmp_path / "new").glob("*.jpg"))) == 2
    assert draw(["a blue box"]) == names[1:2]
    assert draw(["a blue box"], seed=1) != names[1:2]
