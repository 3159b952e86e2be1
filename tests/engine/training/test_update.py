"""One update: the mean over the images of a step, and no update with values that are not finite."""

import copy
import math

import pytest
import torch
from torch import nn

from data import Batch
from dcn import DeformConv2d
from engine.distributed.processes import DistributedContext
from engine.training.ema import Ema
from engine.training.optimizer import current_lrs
from engine.training.schedule import build_schedule
from engine.training.update import NonFiniteError, Updater

CPU = torch.device("cpu")


class Toy(nn.Module):
    """A detector with torchvision's interface and two losses that are means over the images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(3, 2, (3, 2), padding=1)
        nn.init.normal_(self.conv.conv_offset.bias[:12])
        self.drawn = []

    def forward(self, images, targets=None):
        maps = [self.conv(image[None]).mean() for image in images]
        if not self.training:
            return [{"boxes": map_} for map_ in maps]
        self.drawn.append(torch.rand(1).item())
        wanted = [target["boxes"].sum() for target in targets]
        errors = torch.stack([map_ - want for map_, want in zip(maps, wanted, strict=True)])
        return {"loss_a": errors.square().mean(), "loss_b": 0.5 * errors.abs().mean()}


def image_and_target(index):
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(256, (3, 5 + index, 7), generator=generator, dtype=torch.uint8)
    return image, {"boxes": torch.full((1, 4), 0.1 * index), "image_id": 100 + index, "seed": index}


def batch_of(*indices, weight=1.0, ends_step=True, unreadable=()):
    images, targets = zip(*map(image_and_target, indices), strict=True)
    return Batch([*images], [*targets], weight, ends_step, [*unreadable])


BLANK = Batch([torch.zeros(3, 8, 8, dtype=torch.uint8)], [{"boxes": torch.zeros(0, 4), "image_id": -1}], 0.0, True, [])


def make_updater(**options) -> Updater:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "name": "all", "lr": 0.1}], momentum=0.9)
    return Updater(model, optimizer, make_schedule(), device=CPU, **options)


def make_schedule():
    return build_schedule(
        kind="step",
        total_steps=10,
        steps_per_epoch=10,
        unit="step",
        warmup_steps=0,
        warmup_factor=1.0,
        milestones=[2],
        gamma=0.5,
        min_lr_factor=0.0,
    )


def by_hand(*indices):
    """Losses and gradients of the mean over some images, one by one."""
    model = make_updater().model
    total = torch.zeros(())
    parts = {"loss_a": 0.0, "loss_b": 0.0}
    for index in indices:
        image, target = image_and_target(index)
        error = model.conv(image[None].float() / 255).mean() - target["boxes"].sum()
        parts["loss_a"] += error.square().item() / len(indices)
        parts["loss_b"] += 0.5 * error.abs().item() / len(indices)
        total = total + (error.square() + 0.5 * error.abs()) / len(indices)
    total.backward()
    return parts | {"loss": total.item()}, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    "batches",
    [
        [batch_of(1, 2, 3, 4)],
        [batch_of(1, weight=0.25, ends_step=False), batch_of(2, 3, 4, weight=0.75)],
        [batch_of(1, 2, weight=0.5, ends_step=False), batch_of(3, 4, weight=0.5, ends_step=False), BLANK],
    ],
    ids=["whole", "uneven", "blank"],
)
def test_a_step_is_the_mean_over_its_images(batches):
    losses, gradients = by_hand(1, 2, 3, 4)
    updater = make_updater()
    before = [parameter.detach().clone() for parameter in updater.model.parameters()]
    record = updater(batches)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert record.numbers == pytest.approx(losses | {"grad_norm": norm}, rel=1e-5)
    assert (record.lrs, record.signalled, record.unreadable) == ({"all": 0.1}, False, 0)
    for parameter, old, gradient in zip(updater.model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert updater.step == 1


class PerBox(nn.Module):
    """A detector whose published loss is the sum over the boxes of a step, divided by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64))

    def error_of(self, image, boxes):
        return ((self.factor * image.mean((-2, -1))).sum() - boxes).square().sum()

    def forward(self, images, targets):
        errors = [self.error_of(image, target["boxes"]) for image, target in zip(images, targets, strict=True)]
        return {"loss": sum(errors) / (len(images) * targets[0]["step_boxes"])}


def boxes_of(*counts, weight=1.0, ends_step=True):
    """Images whose colours and boxes follow from their number of boxes."""
    images = [torch.full((3, 4, 5), 20 * count + 7, dtype=torch.uint8) for count in counts]
    targets = [
        {"boxes": torch.arange(4.0 * count, dtype=torch.float64).view(-1, 4), "image_id": count} for count in counts
    ]
    return Batch(images, targets, weight, ends_step, [])


def gradient_per_box(distributed, shares):
    """The gradient of one step, of which each process has some micro-batches."""
    model = PerBox()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "name": "all", "lr": 0.1}])
    updater = Updater(model, optimizer, make_schedule(), device=CPU, distributed=distributed)
    record = updater(shares[distributed.rank])
    return record.numbers["loss"], model.factor.grad.tolist()


def first(*counts, weight):
    return boxes_of(*counts, weight=weight, ends_step=False)


@pytest.mark.parametrize("counts", [(3, 0, 1, 4), (0, 0, 0, 0)], ids=["boxes", "without a box"])
def test_a_loss_per_box_is_that_of_the_whole_step_however_it_is_split(together, counts):
    a, b, c, d = counts
    empty = BLANK._replace(targets=[{"boxes": torch.zeros(0, 4), "image_id": -1}])
    splits = [
        [[boxes_of(*counts)]],
        [[first(a, b, weight=0.5), boxes_of(c, d, weight=0.5)]],
        [[first(a, b, c, weight=0.75), boxes_of(d, weight=0.25)]],
        [[*(first(count, weight=0.25) for count in counts), empty]],
        [[first(a, weight=0.25), boxes_of(b, weight=0.25)], [first(c, d, weight=0.5), empty]],
    ]
    model = PerBox()
    images, targets = boxes_of(*counts)[:2]
    total = sum(model.error_of(i.double() / 255, t["boxes"]) for i, t in zip(images, targets, strict=True))
    loss = total / max(sum(counts), 1)
    loss.backward()
    for shares in splits:
        for found in together(len(shares), gradient_per_box, shares):
            assert found == (
                pytest.approx(loss.item(), rel=1e-12),
                pytest.approx(model.factor.grad.tolist(), rel=1e-12, abs=0),
            )


def test_what_could_not_be_read_learns_nothing_and_is_counted():
    """Two of four images were read: the loss is their mean, the gradient has half the weight of the step."""
    losses, gradients = by_hand(1, 2)
    updater = make_updater()
    before = [parameter.detach().clone() for parameter in updater.model.parameters()]
    record = updater([batch_of(1, 2, weight=0.5, unreadable=["3 is gone", "4 is gone"])])
    assert record.unreadable == 2
    assert {name: record.numbers[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    for parameter, old, gradient in zip(updater.model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.05 * gradient, rtol=1e-4, atol=1e-6)


def test_a_step_without_any_image_changes_nothing():
    updater = make_updater()
    before = copy.deepcopy(updater.model.state_dict())
    record = updater([BLANK._replace(unreadable=["gone"])])
    assert record.numbers == {"loss": 0, "loss_a": 0, "loss_b": 0, "grad_norm": 0}
    assert all(torch.equal(value, before[key]) for key, value in updater.model.state_dict().items())


def test_rates_are_those_of_the_step_and_signals_are_passed_on():
    updater = make_updater()
    records = [updater([batch_of(1)], is_signalled=lambda step=step: step == 2) for step in range(4)]
    assert [record.lrs["all"] for record in records] == [0.1, 0.1, 0.05, 0.05]
    assert [record.signalled for record in records] == [False, False, True, False]


def test_random_numbers_of_a_step_depend_on_nothing_before():
    first = make_updater(seed=4)
    for step in range(4):
        torch.rand(step)
        first([batch_of(1), batch_of(2)])
    assert len({*first.model.drawn}) == 8
    second = make_updater(seed=4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.step = 2
    second([batch_of(1), batch_of(2)])
    assert second.model.drawn == first.model.drawn[4:6]
    other = make_updater(seed=5)
    other([batch_of(1)])
    assert other.model.drawn[0] not in first.model.drawn
    make_updater(seed=2**64 - 1)([batch_of(1)])  # as large as seeds may be
    neighbour = make_updater(seed=4, distributed=DistributedContext(rank=1))
    neighbour([batch_of(1)])
    assert neighbour.model.drawn[0] not in first.model.drawn


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_that_is_not_finite_names_its_images_and_the_largest_offset(amp):
    updater = make_updater(amp=amp)
    for _ in range(3 if amp == "fp16" else 1):  # the first loss scales overflow
        updater([batch_of(1, 2)])
    done = updater.step
    nn.init.constant_(updater.model.conv.conv_offset.bias[3], 1234.0)
    before = copy.deepcopy(updater.state_dict())
    bad = batch_of(5, 6, weight=0.5)
    bad.targets[1]["boxes"][0, 0] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        updater([batch_of(3, 4, weight=0.5, ends_step=False), bad])
    text = str(caught.value)
    assert text.startswith(
        f"step {done + 1} is not finite and was not applied: loss nan, loss_a nan, loss_b nan, grad_norm "
    )
    assert f"lr all {0.05 if done == 3 else 0.1};" in text
    assert text.endswith("train.amp=off")
    assert "; image ids 105, 106; largest offset 1234 pixels, in conv. " in text
    assert f"The weights of step {done} are intact" in text
    after = updater.state_dict()
    assert after["step"] == done
    assert all(torch.equal(after["model"][key], value) for key, value in before["model"].items())
    momenta = [state["optimizer"]["state"][index]["momentum_buffer"] for state in (before, after) for index in range(3)]
    assert all(torch.equal(*pair) for pair in zip(momenta[:3], momenta[3:], strict=True))


def test_a_gradient_that_is_not_finite_names_all_images_of_the_step():
    updater = make_updater()
    updater.model.conv.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"grad_norm (inf|nan); .*image ids 101, 102, 103; largest offset"):
        updater(
            [batch_of(1, 2, weight=0.6, ends_step=False), batch_of(3, weight=0.4), BLANK]
        )  # the last batch is a dummy


def overflow(updater):
    return updater.model.conv.weight.register_hook(lambda gradient: gradient * math.inf)


def test_overflows_of_fp16_are_skipped_for_a_while():
    updater = make_updater(amp="fp16")
    updater([batch_of(1)])
    before = copy.deepcopy(updater.model.state_dict())
    hook = overflow(updater)
    for _ in range(29):
        record = updater([batch_of(1)])
        assert math.isfinite(record.numbers["loss"])
        assert not math.isfinite(record.numbers["grad_norm"])
    assert all(torch.equal(value, before[key]) for key, value in updater.model.state_dict().items())
    hook.remove()
    updater([batch_of(1)])  # a finite step resets the count

    overflow(updater)
    for _ in range(10):
        updater([batch_of(1)])
    resumed = make_updater(amp="fp16")
    resumed.load_state_dict(copy.deepcopy(updater.state_dict()))
    assert resumed.scaler.get_scale() == updater.scaler.get_scale() < 1
    overflow(resumed)
    for each in (updater, resumed):
        for _ in range(20):
            each([batch_of(1)])
        with pytest.raises(
            NonFiniteError, match=r"train.amp=bf16 or off: 31 overflows in a row reduced the loss scale to"
        ):
            each([batch_of(1)])


def test_it_resumes_from_its_state():
    def run(updater, steps):
        for step in steps:
            updater([batch_of(1 + step, 2 + step)])

    ema = {"decay": 0.8}
    whole, first, second = (make_updater() for _ in range(3))
    for updater in (whole, first, second):
        updater.ema = Ema(updater.model, **ema)
    run(whole, range(5))
    run(first, range(3))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, range(3, 5))
    one, other = whole.state_dict(), second.state_dict()
    for part in ("model", "ema"):
        a, b = (state[part] if part == "model" else state[part]["model"] for state in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert current_lrs(second.optimizer) == current_lrs(whole.optimizer) == {"all": 0.05}
    assert second.step == 5
    assert second.ema.updates == 5
    start = make_updater().model.state_dict()
    for key, value in second.ema.model.state_dict().items():  # between the start and the end
        assert not torch.equal(value, start[key])
        assert not torch.equal(value, second.model.state_dict()[key])


def test_an_average_may_begin_in_mid_run():
    first = make_updater()
    first([batch_of(1)])
    second = make_updater()
    second.ema = Ema(second.model, 0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    average = second.ema.model.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in first.model.state_dict().items())
