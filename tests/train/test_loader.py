"""Samples from other processes: the same bits in the same order, errors in one sentence, bounded memory, no
process left behind."""

import json
import multiprocessing
import os
import shutil
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from toolkit import images
from toolkit.errors import UserError
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import pixels as make_pixels
from toolkit.train import loader
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.loader import Slots, Steps, workers

ORDER = np.random.default_rng(0).permutation(60).tolist()
STEPS = [ORDER[:24], ORDER[24:48], ORDER[48:]]


@pytest.fixture(scope="module")
def dataset(parts, conversations) -> Conversations:
    return open_dataset(parts, conversations.images)


def open_dataset(parts, images: Path) -> Conversations:
    from toolkit.mgm.tokenizer import load_tokenizer

    config = MGMConfig(language=None, clip={"image_size": 56}, depths=(1,), dims=(8,), image_size_aux=128)
    return Conversations(images / "samples.json", images, load_tokenizer(parts.llm, 256), config, "gemma")


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request, monkeypatch):
    """Beside a GPU workers come from a server process; both ways must give the same."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: request.param == "forkserver")


def equal(one: Sample, other: Sample) -> bool:
    if (one.input_ids, one.labels) != (other.input_ids, other.labels) or (one.pixels is None) != (
        other.pixels is None
    ):
        return False
    return one.pixels is None or (one.pixels.dtype == np.uint8 and np.array_equal(one.pixels, other.pixels))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_whole_steps_in_order_and_the_same_bits_whoever_makes_them(dataset, start_method, count):
    with closing(Steps(dataset, STEPS, count)) as steps:
        number = 0
        for number, samples in enumerate(steps, start=1):
            expected = [dataset[index] for index in STEPS[number - 1]]
            assert len(samples) == len(expected) and all(map(equal, samples, expected))
        assert number == len(STEPS)
        assert steps.waited > 0


def test_items_are_what_they_were_made_of(dataset, conversations):
    from PIL import Image

    text, image = dataset[5], dataset[7]
    assert text.pixels is None
    assert image.pixels.shape == (128, 128, 3) and len(image.input_ids) == len(image.labels)
    assert np.array_equal(
        image.pixels, make_pixels(Image.open(conversations.images / "7.jpg"), dataset.read.config)
    )


def test_images_that_a_recipe_made_lie_beside_the_rows(dataset, parts, conversations, tmp_path):
    rows = json.loads(conversations.samples.read_text())
    rows[7]["image"] = "synthetic_images/new.jpg"
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    (tmp_path / "synthetic_images").mkdir()
    shutil.copy(conversations.images / "8.jpg", tmp_path / "synthetic_images" / "new.jpg")
    read = Conversations(
        tmp_path / "samples.json", conversations.images, dataset.read.tokenizer, dataset.read.config, "gemma"
    )
    assert np.array_equal(read[7].pixels, dataset[8].pixels) and np.array_equal(
        read[8].pixels, dataset[8].pixels
    )
    with closing(Steps(read, [[7, 8]], 1)) as steps:
        (((first, second),),) = [list(steps)]
    assert np.array_equal(first.pixels, second.pixels)


def test_a_resumed_training_gets_the_rest(dataset):
    with closing(Steps(dataset, STEPS, 2)) as whole, closing(Steps(dataset, STEPS[1:], 2)) as rest:
        assert all(all(map(equal, one, other)) for one, other in zip(list(whole)[1:], rest, strict=True))


def test_no_steps_are_no_samples(dataset):
    with closing(Steps(dataset, [], 2)) as steps:
        assert list(steps) == []


def test_kept_samples_stay_as_they_were(dataset):
    """Someone who keeps every step has more images than there are places."""
    repeated = STEPS * 3
    with closing(Steps(dataset, repeated, 2)) as steps:
        kept = list(steps)
        assert not steps._free
    assert sum(sample.pixels is not None for samples in kept for sample in samples) > 3 * 24
    for samples, indices in zip(kept, repeated, strict=True):
        assert all(map(equal, samples, [dataset[index] for index in indices]))


def test_memory_is_that_of_three_steps_and_every_place_is_used_again(dataset):
    with closing(Steps(dataset, STEPS * 20, 2)) as steps:
        for samples in steps:
            assert all(sample.pixels.base is not None for sample in samples if sample.pixels is not None), (
                "came through a pipe"
            )
        assert os.fstat(steps._slots.descriptor).st_size == 3 * 24 * 128 * 128 * 3
        del samples
        assert sorted(steps._free) == list(range(3 * 24))


def test_shared_memory_of_the_container_is_not_used(dataset, start_method):
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    with closing(Steps(dataset, STEPS, 2)) as steps:
        for _ in steps:
            ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
            mapped = [
                entry.path
                for process in ours
                for entry in process.memory_maps()
                if entry.path.startswith("/dev/shm/")
            ]
            assert not [path for path in mapped if "/sem." not in path]  # locks are 32 bytes


def damaged(parts, conversations, tmp_path, name: str, content: bytes) -> Conversations:
    shutil.copytree(conversations.images, tmp_path / "images")
    (tmp_path / "images" / name).write_bytes(content)
    return open_dataset(parts, tmp_path / "images")


@pytest.mark.parametrize("count", [0, 2])
def test_a_bad_image_is_one_sentence(parts, conversations, tmp_path, start_method, count):
    whole = (conversations.images / "7.jpg").read_bytes()
    dataset = damaged(parts, conversations, tmp_path, "7.jpg", whole[:200])
    with (
        closing(Steps(dataset, STEPS, count)) as steps,
        pytest.raises(UserError, match=r"^sample '000000007': .*7\.jpg.*(?i:truncated).*$") as e,
    ):
        list(steps)
    assert "\n" not in str(e.value) and e.value.__cause__ is None


def test_an_image_that_is_none_or_too_large_is_one_sentence(parts, conversations, tmp_path, monkeypatch):
    dataset = damaged(parts, conversations, tmp_path, "7.jpg", b"<html>not found</html>")
    with pytest.raises(UserError, match=r"^sample '000000007': .*it is none of JPEG"):
        dataset[7]
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(UserError, match=r"^sample '000000008': .*8\.jpg.* pixels, at most 100 are read"):
        dataset[8]


def test_a_killed_worker_is_one_sentence(dataset):
    with (
        closing(Steps(dataset, STEPS * 40, 2)) as steps,
        pytest.raises(UserError, match=r"was killed: .* enough memory"),
    ):
        for _ in steps:
            next(iter(steps._pool._processes.values())).kill()


@pytest.mark.timeout(120)
def test_a_worker_killed_with_the_lock_of_all_stops_nobody_for_ever(dataset, start_method):
    steps = Steps(dataset, STEPS * 40, 2)
    samples = iter(steps)
    next(samples)
    with steps._pool._call_queue._rlock:  # as if the killed one had it
        next(iter(steps._pool._processes.values())).kill()
        with pytest.raises(UserError, match="was killed"):
            list(samples)
        steps.close()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_worker_outlives_a_close(dataset, start_method):
    with closing(Steps(dataset, STEPS * 40, 2)) as steps:
        next(iter(steps))
        pids = list(steps._pool._processes)
        assert len(pids) == 2 and all(map(alive, pids))
    assert not any(map(alive, pids))


def train_and_hang(dataset: Conversations, sender: Connection, beside_gpu: bool) -> None:
    torch.cuda.is_initialized = lambda: beside_gpu
    steps = Steps(dataset, STEPS * 40, 2)
    next(iter(steps))
    sender.send(list(steps._pool._processes))
    time.sleep(600)


@pytest.mark.parametrize(("method", "beside_gpu"), [("fork", False), ("spawn", True)])
def test_no_worker_outlives_a_killed_training(dataset, method, beside_gpu):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    training = multiprocessing.get_context(method).Process(
        target=train_and_hang, args=(dataset, sender, beside_gpu)
    )
    training.start()
    sender.close()
    pids = receiver.recv()
    assert len(pids) == 2 and all(map(alive, pids))
    training.kill()
    training.join()
    deadline = time.monotonic() + 300
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def watched(monkeypatch, capsys, waited: float, beside_gpu: bool = True) -> str:
    steps = Steps(None, [], 0)
    steps._beside_gpu, steps.workers = beside_gpu, 3
    monkeypatch.setattr(loader, "cores", lambda: 4)
    for _ in range(50):
        steps._watch(waited, 2.0)
    return capsys.readouterr().err


def test_waiting_for_images_is_said_once(monkeypatch, capsys):
    said = watched(monkeypatch, capsys, 0.5)
    assert said.count("\n") == 1
    assert (
        "waited 10.0 of the last 40.0 s for images" in said
        and "3 workers on 4 cores" in said
        and "more cores" in said
    )
    assert watched(monkeypatch, capsys, 0.1) == ""
    assert watched(monkeypatch, capsys, 0.5, beside_gpu=False) == ""


def test_workers_follow_the_cores(monkeypatch):
    counts = {}
    for cores, processes in ((1, 1), (4, 1), (64, 1), (16, 4)):
        monkeypatch.setattr(loader, "cores", lambda cores=cores: cores)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        counts[cores, processes] = workers(torch.device("cuda"))
        assert workers(torch.device("cpu")) == 1
    assert counts == {(1, 1): 1, (4, 1): 3, (64, 1): 16, (16, 4): 3}


def test_slots_are_the_same_memory_for_all_views():
    slots = Slots(2, 4)
    slots[1][:] = 7
    assert slots[0].sum() == 0 and slots[1].sum() == 7 * 48 and slots[1].size == 48
