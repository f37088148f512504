"""A finetuned model in lmms-eval (EvolvingLMMs-Lab, 0.7.3), so that its tasks are one command away:

    make lmms
    .cache/lmms/bin/python -m toolkit.lmms --model mgm --tasks mme --batch_size 16 --output_path DIR \\
        --model_args path=output/training_dirs/MGM-Tiny-Finetune-synth

lmms-eval finds `MANIFEST` as an entry point of this package and builds `Mgm`. Answers are those of
`evaluate`: greedy, with the model's own template; of a task's settings, `max_new_tokens` alone is taken. It
is started from this module because on the CPU torchvision can be imported only after the toolkit.
"""

from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint
from toolkit.mgm.answer import Answerer

MANIFEST = ModelManifest(model_id="mgm", simple_class_path="toolkit.lmms.Mgm")


class Mgm(lmms):
    """The merged model of a finetuning folder, `path`."""

    def __init__(self, path: str, batch_size: int | str = 16, device: str = "auto", **_: Any) -> None:
        super().__init__()
        device = "cuda" if str(device).startswith("cuda") else device or "auto"
        self.answerer = Answerer(Checkpoint(Path(path)).path, device, int(batch_size))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One text for each request, in their order. UserError for a question with several images."""
        answers = [""] * len(requests)
        by_limit: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            by_limit.setdefault(int(request.args[1].get("max_new_tokens", 128)), []).append(number)
        for limit, numbers in by_limit.items():
            images = [self.image(requests[number]) for number in numbers]
            messages = [requests[number].args[0] for number in numbers]
            for number, text in zip(numbers, self.answerer.answer(messages, images, limit), strict=True):
                answers[number] = text
        return answers

    def image(self, request: Instance) -> Any:
        """The question's image (RGB), None for a question without one."""
        _, _, visuals, number, task, split = request.args
        images = visuals(self.task_dict[task][split][number])
        if len(images) > 1:
            raise UserError(f"{task}, question {number} has {len(images)} images: MGM answers about one")
        return images[0] if images else None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError("MGM is asked for texts here: choose a task that generates them")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("MGM is asked one question at a time here: choose a task of one round")


if __name__ == "__main__":
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()
