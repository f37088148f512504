"""What is compiled on a GPU, counted without one by a compiler that stops at the traced graphs."""

import pytest
import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config

from toolkit.bench import synthetic
from toolkit.mgm.accelerate import accelerate
from toolkit.train.lora import attach
from toolkit.train.optimizer import AdamW
from toolkit.train.stages import train_only
from toolkit.train.step import Execution, Stepper

CPU = torch.device("cpu")
SETTINGS = (torch._dynamo.config, torch._functorch.config, torch._inductor.config)


@pytest.fixture
def traced(monkeypatch):
    """The graphs that `accelerate`d modules are traced into; nothing outside the test is changed."""
    graphs, differentiated = [], torch._dynamo.lookup_backend("aot_eager")
    settings = [config.save_config() for config in SETTINGS]

    def compiler(graph, inputs):
        graphs.append(graph)
        return differentiated(graph, inputs)

    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kwargs: plain(self, backend=compiler, **kwargs)
    )
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()
    for config, saved in zip(SETTINGS, settings, strict=True):
        config.load_config(saved)


def test_each_kind_of_block_is_traced_once(traced):
    model = synthetic.model("tiny", torch.float32, CPU)
    attach(model, 4, 8, 0.1, 0)
    parameters = train_only(model, lambda name: "lora_" in name or "mm_projector" in name)
    model.train()
    accelerate(model)
    stepper = Stepper(model, AdamW(parameters, 0.0, 1.0, CPU), Execution(10**6), CPU)
    samples = synthetic.samples("lora", 3, model.mgm, 0)
    for checkpointed in (len(model.model.layers), 0):  # as the planner does
        for rows in (2, 3):
            stepper.execution = Execution(10**6, checkpointed)
            stepper.run(samples[:rows], 1, rows)
    kinds = {"decoder layer": 1, "part of the last": 2, "layer of CLIP": 1}
    kinds |= {"width of a norm": 3, "width of a block": 4}
    assert len(traced) == sum(kinds.values())
