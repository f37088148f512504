"""Several processes, float32 copies of bf16 weights, and DeepSpeed train as one process with AdamW does, on a
tiny random model, CPU and gloo."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import forks
import pytest

from toolkit.train import distributed
from toolkit.train.zero import config

STAGES = ("zero2", "zero2_offload", "zero3")
OPTIMIZERS = ("masters", *STAGES)
STEPS = 6
ROUNDINGS = 1e-5  # some of float32, which are 6e-8; one of bf16 is 2e-3

# Train with each of the optimizers named, twice: throughout, and from a checkpoint in the middle. Write
# losses, norms and weights; of bf16 weights also how far each step is from AdamW in float64.
SCRIPT = """
import sys
from pathlib import Path
import torch
from toolkit.mgm.checkpoint import build
from toolkit.mgm.text import template_of
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train import distributed
from toolkit.train.dataset import Conversations
from toolkit.train.masters import MasterAdamW
from toolkit.train.optimizer import AdamW
from toolkit.train.stages import train_only
from toolkit.train.step import Execution, Stepper
from toolkit.train.zero import Zero, config

torch.set_num_threads(1)
names, output, bf16 = sys.argv[1].split(","), sys.argv[3], sys.argv[4] == "bf16"
llm, clip, convnext, samples, images = sys.argv[2].split(",")
distributed.start()
cpu = torch.device("cpu")
STEPS, MIDDLE, MICRO, ACCUMULATION, processes = 6, 3, 2, 4, distributed.world_size()


def build_model():
    dtype = torch.bfloat16 if bf16 else torch.float32
    return build(Path(llm), Path(clip), Path(convnext), dtype=dtype, seed=1, image_size_aux=128).train()


def optimizer_of(name, model):
    parameters = train_only(model, lambda name: "vision_tower" not in name)
    if name == "adamw":
        return AdamW(parameters, 0.1, 0.5, cpu)
    if bf16:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    if name == "masters":
        return MasterAdamW(parameters, 0.1, 0.5, cpu, offload=False)
    size = model.config.hidden_size
    per = ACCUMULATION // processes
    settings = config(name, micro_batch=MICRO, accumulation=per, processes=processes, max_grad_norm=0.5,
                      hidden_size=size, bf16=bf16)
    zero = Zero(model, parameters, 0.1, settings, cpu)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    return zero


def train(model, optimizer, first, last):
    execution = Execution(pass_tokens=300 if bf16 else 100, checkpointed=1)
    stepper, lines, gradients = Stepper(model, optimizer, execution, cpu), [], {}
    add = lambda gradient, n: gradients.update({n: gradients.get(n, 0) + gradient.float()})
    hooks = [p.register_hook(lambda gradient, n=n: add(gradient, n)) for n, p in trained(model) if bf16]
    for step in range(first, last):
        rows = [shown[(step * MICRO * ACCUMULATION + i) % len(shown)] for i in range(MICRO * ACCUMULATION)]
        # fewer passes in the second process than in the first, and then a step without images
        if step in (1, 4):
            rows[len(rows) // 2 if step == 1 else 0 :] = [text] * (len(rows) // 2 if step == 1 else len(rows))
        share = len(rows) // processes
        rows = rows[distributed.rank() * share :][:share]
        if name != "adamw" and processes == 1 and step == 2:  # a pass that breaks off leaves no trace
            stepper.run(rows[:3], ACCUMULATION, MICRO)
            handle = model.model.layers[0].mlp.down_proj.weight.register_hook(broken)
            try:
                stepper.run(rows, ACCUMULATION, MICRO)
            except MemoryError:
                optimizer.discard()
            handle.remove()
            gradients.clear()
        loss = distributed.total(stepper.run(rows, ACCUMULATION, MICRO))
        rate = 1e-2 * (step + 1) / STEPS
        if bf16:
            zero = getattr(optimizer, "zero", None)
            sums.add((zero.averaged_gradients[0].flat_partition if zero else optimizer.sums).data_ptr())
            lines.append([float(loss), *exactly(optimizer, gradients, rate)])
        else:
            lines.append([float(loss), float(optimizer.step(rate))])
        gradients.clear()
    for hook in hooks:
        hook.remove()
    return lines


def exactly(optimizer, gradients, rate):
    # take a step: its norm, the norm's relative error, the largest error of a master as a part of its size
    # plus the rate, both against AdamW in float64 on the float32 sums of the passes' gradients; whether all
    # is float32, and whether the weights are the masters rounded
    before = {key: value.clone() for key, value in optimizer.state().items()}
    norm = optimizer.step(rate)
    after = optimizer.state()
    exact = {n: gradients.get(n, torch.zeros_like(p)).double() for n, p in optimizer.parameters.items()}
    length = sum(gradient.square().sum() for gradient in exact.values()).sqrt()
    errors = []
    for name, parameter in optimizer.parameters.items():
        kinds = ("value", "exp_avg", "exp_avg_sq", "step")
        value, mean, square, count = (before[f"{key}.{name}"].double() for key in kinds)
        gradient, count = exact[name] * min(1.0, 0.5 / (length + 1e-6)), count + 1
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        update = mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        expected = value * (1 - rate * (0.1 if parameter.ndim > 1 else 0.0)) - rate * update
        errors.append(((after[f"value.{name}"] - expected).abs() / (value.abs() + rate)).max().item())
    float32 = {tensor.dtype for tensor in (*before.values(), *after.values())} == {torch.float32}
    rounded = all(torch.equal(p, after[f"value.{n}"].bfloat16()) for n, p in optimizer.parameters.items())
    return [norm, abs(norm / length.item() - 1), max(errors), float32, rounded]


def broken(gradient):
    raise MemoryError


def trained(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def values(model, optimizer):
    optimizer.close()
    return {name: parameter.detach().float() for name, parameter in trained(model)}


model = build_model()
tokenizer = load_tokenizer(Path(llm), model.mgm.model_max_length)
data = Conversations(Path(samples), Path(images), tokenizer, model.mgm, template_of(tokenizer))
everything = [data[i] for i in range(len(data))]
shown = [sample for sample in everything if sample.pixels is not None]
text = next(sample for sample in everything if sample.pixels is None)
results = {}
for name in names:
    sums = set()
    model = build_model()
    optimizer = optimizer_of(name, model)
    lines = train(model, optimizer, 0, MIDDLE)
    state = {key: value.clone() for key, value in optimizer.state().items()}
    lines += train(model, optimizer, MIDDLE, STEPS)
    final, places = values(model, optimizer), len(sums)
    if processes > 1:
        box = [state]
        torch.distributed.broadcast_object_list(box)
        state = box[0]
    model = build_model()
    optimizer = optimizer_of(name, model)
    optimizer.load(state)
    again = train(model, optimizer, MIDDLE, STEPS)
    equal = [torch.equal(final[key], value) for key, value in values(model, optimizer).items()]
    same = again == lines[MIDDLE:] and all(equal)
    results[name] = {"lines": lines, "same": same, "places": places, "state": sorted(state), "weights": final}
if distributed.rank() == 0:
    torch.save(results, output)
distributed.stop()
"""


def run(
    processes: int, names: tuple[str, ...], parts, conversations, output: Path, precision: str = "float32"
) -> dict:
    """What SCRIPT writes."""
    import torch

    inputs = ",".join(
        str(path)
        for path in (parts.llm, parts.clip, parts.convnext, conversations.samples, conversations.images)
    )
    argv = [sys.executable, "-W", "ignore", "-c", SCRIPT, ",".join(names), inputs, str(output), precision]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(distributed.free_port()),
        }
    ranks = [
        environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        for rank in range(processes)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    children = [forks.Fork(argv, env=env, **pipes) for env in ranks]
    said = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * processes, said
    # DeepSpeed is quiet; torch 2.10 has gloo say something of its own
    assert [line for out, _ in said for line in out.splitlines() if not line.startswith("[Gloo] ")] == []
    return torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def alone(parts, conversations, tmp_path_factory):
    """One process with every optimizer."""
    return run(
        1, ("adamw", *OPTIMIZERS), parts, conversations, tmp_path_factory.mktemp("alone") / "results.pt"
    )


@pytest.fixture(scope="module")
def together(parts, conversations, tmp_path_factory):
    """Two processes with every optimizer."""
    return run(
        2, ("adamw", *OPTIMIZERS), parts, conversations, tmp_path_factory.mktemp("together") / "results.pt"
    )


def close(result: dict, reference: dict) -> None:
    """Losses, norms and weights agree within float32's rounding."""
    assert len(result["lines"]) == STEPS
    for ours, theirs in zip(result["lines"], reference["lines"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, value in reference["weights"].items():
        difference = (result["weights"][name] - value).abs().max().item()
        assert difference < 2e-4, (name, difference)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_train_as_adamw_does(name, alone):
    close(alone[name], alone["adamw"])


@pytest.mark.parametrize("name", ["adamw", *OPTIMIZERS])
def test_a_checkpoint_continues_exactly(name, alone, together):
    assert alone[name]["same"]
    assert together[name]["same"]


def test_all_write_the_same_checkpoint(alone, together):
    names = alone["adamw"]["state"]
    assert {name.split(".")[0] for name in names} == {"value", "exp_avg", "exp_avg_sq", "step"}
    assert all(result[name]["state"] == names for result in (alone, together) for name in OPTIMIZERS)


@pytest.mark.parametrize("name", ["adamw", *OPTIMIZERS])
def test_two_processes_train_as_one(name, alone, together):
    close(together[name], alone["adamw"])


@pytest.fixture(scope="module")
def llama(llama_parts, conversations, tmp_path_factory):
    """One process, and a language model whose output layer is a tensor of its own."""
    return run(
        1,
        ("adamw", "masters", "zero2", "zero3"),
        llama_parts,
        conversations,
        tmp_path_factory.mktemp("llama") / "results.pt",
    )


@pytest.mark.parametrize("name", ["masters", "zero2", "zero3"])
def test_an_output_layer_of_its_own_is_trained(name, llama):
    assert "lm_head.weight" in llama[name]["weights"] and llama[name]["same"]
    close(llama[name], llama["adamw"])


@pytest.fixture(scope="module")
def halves(parts, conversations, tmp_path_factory):
    """One process with weights in bf16."""
    return run(
        1,
        ("masters", "zero2", "zero2_offload"),
        parts,
        conversations,
        tmp_path_factory.mktemp("halves") / "results.pt",
        "bf16",
    )


@pytest.mark.numerics
@pytest.mark.parametrize("name", ["masters", "zero2", "zero2_offload"])
def test_bf16_weights_have_float32_masters_and_exact_updates(name, halves):
    result = halves[name]
    assert result["same"] and len(result["lines"]) == STEPS
    for _, _, norm_error, error, float32, rounded in result["lines"]:
        assert float32 and rounded
        assert norm_error < ROUNDINGS and error < ROUNDINGS
    assert any((value != value.bfloat16()).any() for value in result["weights"].values())


@pytest.mark.parametrize("name", ["masters", "zero2", "zero2_offload"])
def test_float32_gradients_lie_in_one_place_from_the_first_step_to_the_last(name, halves):
    assert halves[name]["places"] == 1


SCALING = {
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
HOST = {"device": "cpu", "pin_memory": True}
ZERO2 = {
    "stage": 2,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": 2048 * 2048,
}
KIT = {
    "zero2": ZERO2,
    "zero2_offload": ZERO2 | {"offload_optimizer": HOST, "offload_param": HOST},
    "zero3": ZERO2
    | {"stage": 3, "stage3_prefetch_bucket_size": 3774873, "stage3_param_persistence_threshold": 20480}
    | {
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_settings_are_the_kits(stage):
    actual = config(
        stage, micro_batch=4, accumulation=16, processes=2, max_grad_norm=1.0, hidden_size=2048, bf16=True
    )
    batch = {
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": 128,
        "gradient_accumulation_steps": 16,
        "gradient_clipping": 1.0,
    }
    assert actual == {
        "fp16": {"enabled": False, **SCALING},
        "bf16": {"enabled": True},
        **batch,
        "zero_optimization": KIT[stage],
    }


def launched(monkeypatch, folder: Path, body: str) -> int:
    """Exit status of two processes of a program that stands in for the toolkit's."""
    (folder / "toolkit").mkdir()
    (folder / "toolkit" / "__main__.py").write_text(
        "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(body)
    )
    monkeypatch.chdir(folder)
    return distributed.launch(2, ["train", "pretrain"])


def test_a_port_is_none_that_a_connection_could_get():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {distributed.free_port() for _ in range(20)}
    assert max(ports) < first and len(ports) > 10


def test_launch_shows_the_first_process(monkeypatch, tmp_path, capfd):
    assert launched(monkeypatch, tmp_path, "print(os.environ['WORLD_SIZE'], rank, sys.argv[1:])") == 0
    assert capfd.readouterr().out == "2 0 ['train', 'pretrain']\n"


def test_launch_ends_all_and_passes_on_the_sentence_of_the_one_that_failed(monkeypatch, tmp_path, capfd):
    body = """
    if rank == 0:
        (open("lost").read(), sys.exit(75)) if os.path.exists("lost") else time.sleep(600)
    if os.path.exists("lost"):
        os.open("lost", os.O_WRONLY)
    print("a note", file=sys.stderr)
    sys.exit("error: x.jpg is not an image")
    """
    assert launched(monkeypatch, tmp_path, body) == 1
    assert capfd.readouterr().err == "error: x.jpg is not an image\n"
    os.mkfifo(tmp_path / "lost")  # the first one reads until the other has gone
    assert distributed.launch(2, []) == 1
    assert capfd.readouterr().err == "error: x.jpg is not an image\n"


def test_launch_tells_when_a_process_is_killed(monkeypatch, tmp_path, capfd):
    assert (
        launched(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(600)")
        == 137
    )
    assert "ended by signal 9" in capfd.readouterr().err


def test_launch_passes_on_what_tells_it_to_end(monkeypatch, tmp_path, capfd):
    body = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by SIGTERM"))
    open(f"ready{rank}", "w").close()
    if rank == 0:
        while not os.path.exists("ready1"):
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
    """
    assert launched(monkeypatch, tmp_path, body) == 1
    assert "error: ended by SIGTERM" in capfd.readouterr().err
