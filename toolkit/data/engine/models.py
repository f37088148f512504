"""Models of transformers as recipes use them: whole, and for nothing but inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from toolkit.errors import UserError


@contextmanager
def inference() -> Iterator[None]:
    """Within, no activations are kept for a backward pass, as some of Data-Juicer's operators would, and a
    model that is loaded must be whole: UserError where transformers would draw weights at random and say so
    in the log."""
    original = PreTrainedModel.__dict__["from_pretrained"]

    def whole(kind: Any, folder: Any, *arguments: Any, **options: Any) -> Any:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its report of the loading
        try:
            model, found = original.__func__(kind, folder, *arguments, output_loading_info=True, **options)
        finally:
            logging.set_verbosity(verbosity)
        # sentence-transformers leaves out what BERT makes of the first token for classifiers
        bare = model.base_model is model
        lacking = sorted(name for name in found["missing_keys"] if not (bare and name.startswith("pooler.")))
        if lacking:
            raise UserError(
                f"{folder} lacks {len(lacking)} of the weights of a {kind.__name__}, {lacking[0]} among "
                "them, and its results would be random: fetch the model again, or name another"
            )
        return model

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(whole)), torch.no_grad():
        yield
