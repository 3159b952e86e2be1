"""The moving average of weights, by its formula."""

import copy

import pytest
import torch
from torch import nn

from engine.training.ema import Ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.BatchNorm2d(3))


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(4, 2, 5, 6))  # moves the statistics of the norm


@pytest.mark.parametrize("decay", [0.5, 0.9998])
def test_the_average_is_that_of_the_formula(decay):
    model = network()
    ema = Ema(model, decay)
    expected = None
    for update in range(1, 6):
        change(model)
        ema.update(model)
        keep = min(decay, (1 + update) / (10 + update))
        now = {key: value.double() for key, value in model.state_dict().items()}
        # the first update takes the weights as they are
        expected = {key: keep * expected[key] + (1 - keep) * now[key] for key in now} if expected else now
    average = ema.model.state_dict()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            assert average[key] == 5
        else:
            torch.testing.assert_close(average[key].double(), value, rtol=1e-5, atol=1e-6)
            assert not torch.equal(average[key], model.state_dict()[key])


def test_the_model_is_left_alone_and_the_average_has_no_gradient():
    model = network()
    ema = Ema(model, 0.9)
    change(model)
    before = copy.deepcopy(model.state_dict())
    ema.update(model)
    change(model)
    ema.update(model)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert list(ema.model.state_dict()) == list(model.state_dict())


def test_it_resumes_from_its_state():
    model = network()
    one, other = Ema(model, 0.7), Ema(network(), 0.7)
    for _ in range(3):
        change(model)
        one.update(model)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    change(model)
    for ema in (one, other):
        ema.update(model)
    assert one.updates == other.updates == 4
    for key, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[key], value), key
