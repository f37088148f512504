"""The tiny BERT whose embeddings say how alike two captions are: those of one scene lie close, whatever their
form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from toolkit.data.operators.synonym_replacement_mapper import SynonymReplacementMapper
from toolkit.data.sentences import pooled
from toolkit.world.captions import caption, full_caption
from toolkit.world.scene import Scene, sample_scene
from toolkit.world.zoo_train import tokenizer
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

LENGTH = 32  # tokens of a caption
FORMS = 8  # captions of a scene
TEMPERATURE = 0.05  # of the cosines, as MiniLM's training divides them


def captions(scene: Scene, rng: np.random.Generator, replace: Callable[[str], str]) -> list[str]:
    """True captions of a scene, FORMS of them; half with synonyms, which the tokenizer spells."""
    texts = [full_caption(scene), *(caption(scene, rng) for _ in range(FORMS // 2 - 1))]
    return [*texts, *map(replace, texts)]


def run(
    output: Path, *, texts: int, processes: int, steps: int, batch: int, device: str, seed: int = 18
) -> dict[str, float]:
    """Train on the true captions of `texts` scenes, drawn in one process, and save to `output`; return the
    final numbers.

    Of each scene two captions are drawn: each has to be found by the other among those of the batch (van den
    Oord et al. 2018, arXiv:1807.03748). `hit`: how often it is.
    """
    torch.manual_seed(seed)
    words = tokenizer.clip()
    rng = np.random.default_rng(seed)
    replace = SynonymReplacementMapper().replace
    scenes = [captions(sample_scene(rng, "zoo"), rng, replace) for _ in range(texts)]
    encoded = words(
        [text for texts_of in scenes for text in texts_of],
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    ids = encoded.input_ids.view(texts, FORMS, LENGTH).to(device)
    size: dict[str, Any] = {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "pad_token_id": words.pad_token_id,
    }
    model = BertModel(
        BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    )
    model.to(device)  # type: ignore[arg-type]  # untyped in transformers
    generator = torch.Generator(device=device).manual_seed(seed)
    target = torch.arange(batch, device=device)

    def drawn(rows: torch.Tensor) -> torch.Tensor:
        """Embeddings of one caption of each scene, float [rows, 64]."""
        part = ids[rows, torch.randint(FORMS, rows.shape, generator=generator, device=device)]
        mask = (part != words.pad_token_id).long()
        longest = int(mask.sum(1).max())
        return pooled(model, part[:, :longest], mask[:, :longest])

    def loss(_: int) -> dict[str, torch.Tensor]:
        rows = torch.randint(texts, (batch,), generator=generator, device=device)
        cosines = drawn(rows) @ drawn(rows).T / TEMPERATURE
        return {
            "loss": (F.cross_entropy(cosines, target) + F.cross_entropy(cosines.T, target)) / 2,
            "hit": (cosines.argmax(1) == target).float().mean(),
        }

    numbers = train("sentences", model.parameters(), loss, steps, 2e-3)
    save_half(model.eval(), output)
    tokenizer.clip().save_pretrained(output)  # a fresh tokenizer: padding to a length would be saved
    return numbers | {"parameters": model.num_parameters()}
