"""Batches contain each image once, for any split of a step and after resuming; workers end cleanly."""

import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import v2

import data
from data import (
    Batch,
    CocoDetection,
    ImageError,
    MicroBatch,
    TrainTransform,
    WorkerError,
    eval_loader,
    eval_transform,
    load_annotations,
    read_batches,
)

WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Numbers(Dataset):
    """Data set whose items contain their index and random numbers; the aspect ratio changes from image to image.

    Items in `broken` cannot be read. An item in `deadly` kills the process that reads it while `lure` exists.
    """

    def __init__(self, count: int, broken: Iterable[int] = (), deadly: int = -1, lure: Path = Path("nowhere")) -> None:
        self.aspect_ratios = [0.7 if index % 3 else 1.5 for index in range(count)]
        self.broken = {*broken}
        self.deadly, self.lure = deadly, lure

    def __len__(self) -> int:
        return len(self.aspect_ratios)

    def read(self, index: int, size: int | None, strong: bool) -> tuple[torch.Tensor, dict]:
        if index in self.broken:
            raise ImageError(f"image {index}.png is broken")
        if index == self.deadly and self.lure.exists():
            self.lure.unlink()
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.rand(3), {"image_id": index, "asked": (size, strong)}

    def dummy(self, size: int | None, strong: bool) -> tuple[torch.Tensor, dict]:
        return torch.rand(3), {"image_id": -1, "asked": (size, strong), "boxes": torch.zeros(0, 4)}


def indices(sampler: Iterable[MicroBatch]) -> list[list[int]]:
    return [[index for index, _ in batch.samples] for batch in sampler]


def ids(batches: Iterable[Batch]) -> list[list[int]]:
    return [[target["image_id"] for target in batch.targets] for batch in batches]


def pairs(batch: Batch) -> Iterable[tuple[torch.Tensor, dict]]:
    return zip(batch.images, batch.targets, strict=True)


def content_of(batch: Batch) -> tuple:
    """Return the content of a batch of `Numbers`, for comparison."""
    images = [(image.flatten().tolist(), target["seed"]) for image, target in pairs(batch)]
    return images, ids([batch])[0], batch[2:]


def drawn(batches: Iterable[Batch]) -> list[tuple]:
    return [content_of(batch) for batch in batches]


def train_loader(dataset: Dataset, *, workers: int = 0, batch_size: int = 3, seed: int = 5, **options):
    return data.train_loader(dataset, batch_size=batch_size, workers=workers, seed=seed, **options)


def transform_to(min_size: int, max_size: int, **options) -> TrainTransform:
    """Return a transform that resizes to the size of the step, or the shorter side to `min_size`."""

    def resize(size: int | None, fill: tuple[int, int, int]) -> list[v2.Transform]:
        return [v2.RandomShortestSize(min_size, max_size) if size is None else v2.Resize((size, size))]

    return TrainTransform(resize, (0, 0, 0), **options)


def failure(batches: Iterable[Batch]) -> Exception | None:
    """Return the error that ends a pass.

    The traceback is removed, because it references the loader: in a cycle, the loader waits long for its workers.
    """
    try:
        list(batches)
    except Exception as error:
        return error.with_traceback(None)
    return None


@pytest.mark.parametrize("load", [train_loader, eval_loader])
def test_an_unknown_policy_is_an_error(load):
    with pytest.raises(ValueError, match="`on_unreadable_image` must be one of raise, skip, got 'ignore'"):
        load(Numbers(3), batch_size=1, workers=0, on_unreadable_image="ignore")


def test_workers_do_not_change_the_samples():
    passes = {}
    for workers in (0, 2):
        loader = train_loader(Numbers(14), workers=workers)
        for epoch, start in ((0, 0), (1, 0), (1, 2)):
            loader.batch_sampler.set_position(epoch, start)
            passes[workers, epoch, start] = drawn(loader)
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        assert passes[0, epoch, start] == passes[2, epoch, start]
    assert passes[0, 1, 2] == passes[0, 1, 0][2:], "the augmentation must not depend on where a run resumed"
    assert passes[0, 0, 0] != passes[0, 1, 0]


def test_images_are_read_the_same_however_a_step_is_split(by_step):
    def read(batch_size: int, grad_accum_steps: int, processes: int) -> list:
        options = {"batch_size": batch_size, "grad_accum_steps": grad_accum_steps, "processes": processes}
        shares = [by_step(train_loader(Numbers(26), rank=rank, **options)) for rank in range(processes)]
        steps = zip(*shares, strict=True)
        batches = [[batch for part in step for batch in part if batch.weight] for step in steps]
        assert all(sum(batch.weight for batch in step) == pytest.approx(1) for step in batches)
        return [
            [(target["image_id"], target["seed"], image.tolist()) for b in step for image, target in pairs(b)]
            for step in batches
        ]

    whole = read(6, 1, 1)
    assert sorted(len(step) for step in whole) == [3, 5, 6, 6, 6]
    for split in ((3, 2, 1), (1, 6, 1), (2, 1, 3), (1, 2, 3), (1, 1, 6)):
        assert read(*split) == whole, split


def test_targets_contain_the_seed_of_their_image():
    loader = train_loader(Numbers(14))
    plan = [batch.samples for batch in loader.batch_sampler]
    assert [[(t["image_id"], t["seed"]) for t in batch.targets] for batch in loader] == plan


def test_augmentation_changes_from_epoch_to_epoch():
    loader = train_loader(Numbers(14))
    epochs = []
    for epoch in (0, 1):
        loader.batch_sampler.set_position(epoch)
        numbers = {target["image_id"]: image.tolist() for batch in loader for image, target in pairs(batch)}
        epochs.append(numbers)
    assert all(epochs[0][image_id] != epochs[1][image_id] for image_id in range(14))


@WORKERS
def test_global_random_state_is_untouched(workers, monkeypatch):
    # the state of a GPU is not restored, so it must not be set
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    loader = train_loader(Numbers(7), workers=workers)
    state = torch.Generator().manual_seed(3).get_state()
    torch.default_generator.set_state(state)
    for _ in range(2):
        list(loader)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_drawn_images_do_not_depend_on_the_global_random_state():
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        passes.append(drawn(train_loader(Numbers(7))))
    assert passes[0] == passes[1]


def test_a_target_cached_by_the_data_set_is_not_changed():
    kept = {"image_id": 0}
    dataset = Numbers(1)
    dataset.__class__ = type("Kept", (Numbers,), {"read": lambda self, index, size, strong: (torch.rand(3), kept)})
    (batch,) = train_loader(dataset)
    assert "seed" in batch.targets[0]
    assert kept == {"image_id": 0}


def test_images_and_their_flips_from_files(shapes):
    annotations = load_annotations(shapes / "train", shapes / "annotations" / "train.json")
    dataset = CocoDetection(annotations, transform_to(80, 96))
    plain = {target["image_id"]: image for image, target in CocoDetection(annotations, eval_transform())}
    flipped = 0
    passes = [list(train_loader(dataset, workers=workers, batch_size=5)) for workers in (0, 2)]
    assert [len(batch.images) for batch in passes[0]] == [5, 5, 2]
    for batch, again in zip(*passes, strict=True):
        assert [target["boxes"].tolist() for target in batch.targets] == [t["boxes"].tolist() for t in again.targets]
        for image, same, target in zip(batch.images, again.images, batch.targets, strict=True):
            assert torch.equal(image, same)
            flipped += torch.equal(image, plain[target["image_id"]].flip(2))
    assert 1 <= flipped <= 11


def test_a_batch_without_an_image_is_a_dummy(shapes):
    # one image for three processes
    batches = [list(train_loader(Numbers(1), rank=rank, processes=3)) for rank in range(3)]
    assert [[(batch.weight, batch.ends_step) for batch in batches_] for batches_ in batches] == [
        [(1, True)],
        [(0, True)],
        [(0, True)],
    ]
    ((image,), (target,), *_, unreadable) = batches[2][0]
    torch.random.manual_seed(0)
    assert image.tolist() == torch.rand(3).tolist()
    assert (target["image_id"], target["seed"], unreadable) == (-1, 0, [])


def test_a_dummy_image_passes_through_the_transform_of_the_step(shapes):
    annotations = load_annotations(shapes / "train", shapes / "annotations" / "train.json", invalid_masks="drop")
    transform = transform_to(80, 96, large_scale_jitter=(48, (0.5, 1.0)))
    dataset = CocoDetection(annotations, transform, masks=True)
    for options, side in (({}, 48), ({"strong_epochs": 0}, 80), ({"strong_epochs": 0, "sizes": [56]}, 56)):
        options |= {"batch_size": 1, "processes": 16, "rank": 15}
        loader = train_loader(dataset, **options)
        *_, ((image,), (target,), weight, *_) = loader
        assert weight == 0
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, side, side))
        assert (type(target["boxes"]), tuple(target["boxes"].shape)) == (torch.Tensor, (0, 4))
        assert (target["labels"].dtype, tuple(target["labels"].shape)) == (torch.int64, (0,))
        assert (target["masks"].dtype, tuple(target["masks"].shape)) == (torch.uint8, (0, side, side))
    (image,), (target,), weight, ends_step, unreadable = loader.dataset.dummy_batch()
    assert (tuple(image.shape), target["image_id"], target["seed"]) == ((3, 48, 48), -1, 0)
    assert (weight, ends_step, unreadable) == (0, True, [])


@WORKERS
def test_the_size_of_the_step_and_strong_augmentations_reach_every_image(workers, by_step):
    """This also holds after resuming, in every process, and for dummy images."""
    options = {"sizes": [32, 64, 96], "strong_epochs": 1}
    asked = {}
    for processes in (1, 2):
        for rank in range(processes):
            loader = train_loader(
                Numbers(26, {3, 7, 9}),
                batch_size=4 // processes,
                rank=rank,
                processes=processes,
                workers=workers,
                on_unreadable_image="skip",
                **options,
            )
            for epoch, start in ((0, 0), (1, 0), (1, 3)):
                loader.batch_sampler.set_position(epoch, start)
                asked[processes, rank, epoch, start] = [
                    {target["asked"] for batch in step for target in batch.targets} for step in by_step(loader)
                ]
    whole = {epoch: asked[1, 0, epoch, 0] for epoch in (0, 1)}
    for (_, _, epoch, start), found in asked.items():
        assert found == whole[epoch][start:]
    for epoch, strong in ((0, True), (1, False)):
        assert all(len(step) == 1 for step in whole[epoch])
        assert {each for step in whole[epoch] for each in step} == {(size, strong) for size in (32, 64, 96)}
    assert [size for ((size, _),) in whole[0]] != [size for ((size, _),) in whole[1]]


@WORKERS
def test_an_unreadable_image_raises(workers):
    for load in (train_loader, eval_loader):
        error = failure(load(Numbers(7, broken=[4]), workers=workers, batch_size=2))
        assert type(error) is ImageError
        assert "image 4.png is broken" in str(error)


@WORKERS
def test_an_unreadable_image_is_skipped_and_reported(workers):
    broken = {1, 2, 5, 6}
    batches = list(train_loader(Numbers(7, broken), workers=workers, batch_size=2, on_unreadable_image="skip"))
    whole = list(train_loader(Numbers(7), batch_size=2))
    assert any(len(batch.unreadable) == 2 for batch in batches), "one batch must be empty"
    assert any(len(batch.unreadable) == 1 for batch in batches)
    for batch, full in zip(batches, whole, strict=True):
        numbers = {target["image_id"]: image.tolist() for image, target in pairs(full)}
        left = [image for image in numbers if image not in broken]
        assert batch.unreadable == [f"image {image}.png is broken" for image in numbers if image in broken]
        assert ids([batch])[0] == (left or [-1])
        assert batch.weight == pytest.approx(full.weight * len(left) / len(numbers))
        assert batch.ends_step == full.ends_step
        if left:  # with the same random numbers as next to the broken ones
            assert [image.tolist() for image in batch.images] == [numbers[image] for image in left]


@WORKERS
def test_eval_skips_an_unreadable_image(workers):
    loader = eval_loader(Numbers(7, [1, 4, 5]), batch_size=2, workers=workers, on_unreadable_image="skip")
    batches = list(loader)
    assert ids(batches) == [[0], [2, 3], [], [6]]
    assert [batch.weight for batch in batches] == pytest.approx([1 / 7, 2 / 7, 0, 1 / 7])
    assert [batch.unreadable for batch in batches] == [
        ["image 1.png is broken"],
        [],
        ["image 4.png is broken", "image 5.png is broken"],
        [],
    ]


@WORKERS
def test_eval_loader_keeps_the_order(shapes, workers):
    annotations = load_annotations(shapes / "val", shapes / "annotations" / "val.json")
    loader = eval_loader(CocoDetection(annotations, eval_transform()), batch_size=4, workers=workers)
    state = torch.random.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert ids(batches) == [[1, 2, 3, 4], [5, 6]]
    assert all(isinstance(b.images, list) and b.images[0].shape == (3, 80, 96) for b in batches)
    assert [(b.weight, b.ends_step, b.unreadable) for b in batches] == [(4 / 6, True, []), (2 / 6, True, [])]


@WORKERS
def test_masks_pass_through_worker_processes(shapes, workers):
    file = shapes / "annotations" / "train.json"
    annotations = load_annotations(shapes / "train", file, invalid_masks="raise")
    transform = transform_to(64, 96)
    dataset = CocoDetection(annotations, transform, masks=True)
    batches = list(train_loader(dataset, workers=workers))
    alone = list(train_loader(CocoDetection(annotations, transform), workers=workers))
    for (image, target), (same, without) in zip(
        itertools.chain(*map(pairs, batches)), itertools.chain(*map(pairs, alone)), strict=True
    ):
        assert torch.equal(image, same)
        assert torch.equal(target["boxes"], without["boxes"])
        assert (target["masks"].dtype, tuple(target["masks"].shape)) == (
            torch.uint8,
            (len(target["boxes"]), *image.shape[1:]),
        )
        # each fills a part of its box, except for a border
        for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].tolist(), strict=True):
            inside = mask[max(int(top) - 1, 0) : int(bottom) + 2, max(int(left) - 1, 0) : int(right) + 2]
            assert 0.2 * (right - left) * (bottom - top) < inside.sum() == mask.sum()


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 6))
def test_each_eval_image_is_read_by_one_process(count, batch_size, processes):
    shares = [
        list(eval_loader(Numbers(count), batch_size=batch_size, workers=0, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for rank, share in enumerate(shares):
        assert [i for batch in ids(share) for i in batch] == list(range(rank, count, processes))
        assert all(len(batch.images) <= batch_size for batch in share)
    assert sum(batch.weight for share in shares for batch in share) == pytest.approx(min(count, 1))


def test_a_process_may_have_no_eval_images():
    assert list(eval_loader(Numbers(1), batch_size=2, workers=1, rank=1, processes=2)) == []


def test_batches_can_be_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    (batch,) = train_loader(Numbers(1), rank=1, processes=2)
    same = pin_memory(batch)
    assert type(same) is Batch
    assert content_of(same) == content_of(batch)
    assert len(pinned) == 2, "image and boxes"


def started(batches: Iterable[Batch], before: set) -> tuple[list[Batch], set]:
    """Return the first batch and the worker processes that were started for it."""
    first = next(batches)
    return [first], {*multiprocessing.active_children()} - before


def kill(worker: multiprocessing.Process) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


@pytest.fixture
def before() -> set:
    """Return the child processes of other tests."""
    return {*multiprocessing.active_children()}


# in the middle of a step, at its end, and after everything was read ahead
@pytest.mark.parametrize("read", [1, 2, 6])
def test_a_dead_worker_ends_the_pass_with_advice(before, read):
    options = {"batch_size": 2, "grad_accum_steps": 2, "rank": 1, "processes": 2}
    loader = train_loader(Numbers(33), workers=2, **options)
    batches = read_batches(loader)
    found, workers = started(batches, before)
    found += itertools.islice(batches, read - 1)
    victim = workers.pop()
    kill(victim)
    error = failure(batches)
    assert type(error) is WorkerError
    assert str(error) == (
        f"worker process {victim.pid} of the data loader was killed by signal 9 (Killed). The usual cause is too "
        "little memory: reduce data.num_workers (currently 2), or provide more memory or shared memory (/dev/shm). "
        "--resume auto continues training exactly from its last checkpoint"
    )
    undisturbed = drawn(train_loader(Numbers(33), **options))
    assert drawn(found) == undisturbed[:read]
    assert drawn(read_batches(loader)) == undisturbed, "the next pass has new workers"


def test_death_while_a_batch_is_waited_for(tmp_path):
    lure = tmp_path / "lure"
    lure.touch()
    deadly = indices(train_loader(Numbers(20)).batch_sampler)[2][0]
    loader = train_loader(Numbers(20, deadly=deadly, lure=lure), workers=1)
    assert type(failure(read_batches(loader))) is WorkerError


def test_death_between_two_passes(before):
    loader = eval_loader(Numbers(20), batch_size=3, workers=2, rank=1, processes=2)
    batches = read_batches(loader)
    found, workers = started(batches, before)
    found += batches
    assert ids(found) == [[1, 3, 5], [7, 9, 11], [13, 15, 17], [19]]
    kill(workers.pop())
    assert type(failure(read_batches(loader))) is WorkerError


@WORKERS
def test_other_errors_pass_unchanged(workers):
    class Faulty(Numbers):
        def read(self, index, size, strong):
            raise RuntimeError("a bug")

    error = failure(read_batches(train_loader(Faulty(5), workers=workers)))
    assert type(error) is RuntimeError
    assert "a bug" in str(error)


@WORKERS
def test_an_undisturbed_pass_has_the_batches_of_the_loader(workers):
    loader = train_loader(Numbers(20), workers=workers)
    for epoch, start in ((0, 1), (1, 0)):
        loader.batch_sampler.set_position(epoch, start)
        assert drawn(read_batches(loader)) == drawn(loader)


def test_a_consumer_may_stop_early():
    loader = train_loader(Numbers(33), workers=2)
    whole = drawn(train_loader(Numbers(33)))
    for _ in range(2):
        batches = read_batches(loader)
        found = [next(batches), next(batches)]
        batches.close()
        assert drawn(found) == whole[:2]
    assert drawn(read_batches(loader)) == whole


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no schedulers here")
def test_signals_of_a_scheduler_do_not_end_workers(before):
    loader = train_loader(Numbers(33), workers=2)
    batches = read_batches(loader)
    found, workers = started(batches, before)
    found.append(next(batches))  # of the other worker, which is also ready then
    for worker, number in itertools.product(workers, (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)):
        os.kill(worker.pid, number)
    found += batches
    assert drawn(found) == drawn(train_loader(Numbers(33)))
    assert {*multiprocessing.active_children()} - before == workers


class Shortage(Numbers):
    """Data set that changes its process, from the image `at` on, so that no batch can be sent."""

    def __init__(self, count: int, at: int, spoil: Callable[[], object]) -> None:
        super().__init__(count)
        self.at, self.spoil = at, spoil

    def read(self, index: int, size: int | None, strong: bool) -> tuple[torch.Tensor, dict]:
        if index == self.at:
            self.spoil()
        return super().read(index, size, strong)


def open_no_more_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def refuse_to_share(*arguments: object) -> None:
    raise RuntimeError("unable to write to file </torch_7>: No space left on device (28)")


def fill_shared_memory() -> None:
    torch.UntypedStorage._share_fd_cpu_ = refuse_to_share


def break_sharing() -> None:
    torch.UntypedStorage._share_fd_cpu_ = lambda *arguments: 1 / 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            open_no_more_files,
            r"could not send a batch \(Too many open files\)\. .* limit \(\d+\): raise it with ulimit -n, ",
        ),
        (fill_shared_memory, r"could not send a batch \(No space left on device\)\. .* shared memory \(/dev/shm\)"),
        (break_sharing, r"ended with exit code 1\. "),
    ],
)
def test_a_batch_that_cannot_be_sent_ends_the_pass(capfd, spoil, said):
    loader = train_loader(Shortage(12, 11, spoil), batch_size=2, workers=1)
    with pytest.raises(WorkerError, match=rf"^worker process \d+ of the data loader {said}"):
        list(read_batches(loader))
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (spoil is break_sharing)


def test_a_batch_that_cannot_be_received_ends_the_pass():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loader = train_loader(Numbers(33), batch_size=2, workers=1)
    batches = read_batches(loader)
    next(batches)
    try:
        open_no_more_files()
        with pytest.raises(WorkerError, match=r"cannot receive a batch: Too many open files\. .*data\.num_workers"):
            list(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_workers_raise_the_limit_on_open_files():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        train_loader(Numbers(1), workers=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_an_interrupt_does_not_reach_workers_while_they_start(before):
    batches = read_batches(train_loader(Numbers(33), workers=2))  # without it, the workers end
    _, workers = started(batches, before)
    for worker in workers:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
        assert int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1
    own = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert not int(own["SigBlk"], 16) >> (signal.SIGINT - 1) & 1


ITEMS = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {root!r})
import torch
from torch.utils.data import DataLoader, Dataset
from data import WorkerError, read_batches, train_loader

class Items(Dataset):
    aspect_ratios = [1.0] * 20
    def __len__(self): return 20
    def read(self, index, size, strong): return torch.zeros(1), {{}}
    def __getitem__(self, index): return index

"""
SILENT = """
calls = []
if {after_another}:
    list(DataLoader(Items(), num_workers=1, collate_fn=list))
else:
    signal.signal(signal.SIGCHLD, lambda number, frame: calls.append(number))
batches = read_batches(train_loader(Items(), batch_size=2, workers=2, seed=0))
next(batches)
worker = multiprocessing.active_children()[0]
os.kill(worker.pid, signal.SIGKILL)
for _ in range(30):
    time.sleep(0.01)  # an update of the weights
print("the update is whole,", "the program's own handler was called:", bool(calls))
try:
    next(batches)
except WorkerError as error:
    print("then:", error)
"""
CRASH = """
def main():
    loader = train_loader(Items(), batch_size=2, workers=2, seed=0)
    for batch in loader:
        raise ZeroDivisionError("a bug")  # its traceback holds the loader
main()
"""


@pytest.fixture
def run(tmp_path):
    """Run a script with a small data set `Items` in a separate process."""

    def start(script: str) -> subprocess.CompletedProcess:
        file = tmp_path / "script.py"
        file.write_text(ITEMS.format(root=str(Path(data.__file__).parents[1])) + script)
        return subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=600, check=False)

    return start


@pytest.mark.parametrize("after_another", [False, True])
def test_a_dead_worker_does_not_interrupt_the_consumer(run, after_another):
    # in a separate process, because PyTorch sets its handler once
    result = run(SILENT.format(after_another=after_another))
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first == f"the update is whole, the program's own handler was called: {not after_another}"
    assert second.startswith("then: worker process ")


def test_a_program_that_crashes_ends(run):
    result = run(CRASH)
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("ZeroDivisionError: a bug\n")
