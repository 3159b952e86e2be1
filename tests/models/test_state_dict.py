"""State dicts are found under all containers and prefixes, and only real finite numbers are weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.state_dict import CONTAINERS, PREFIXES, check_weights, find_state_dict

NAMES = ("conv1.weight", "layer1.0.conv1.weight", "bn1.num_batches_tracked")
STATE = {name: torch.tensor(float(index)) for index, name in enumerate(NAMES)}


@given(
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=4),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=4),
    arrays=st.booleans(),
)
def test_containers_and_prefixes_in_any_order(containers, prefixes, arrays):
    content = {".".join([*prefixes, name]): value.numpy() if arrays else value for name, value in STATE.items()}
    for container in containers:
        content = {container: content, "epoch": 3, "lr": torch.tensor(0.1), "optimizer": {"state": {0: STATE}}}
    found = find_state_dict(content)
    assert found.tensors == STATE
    assert found.unused == []


@pytest.mark.parametrize(
    ("content", "unused"),
    [
        ({"model": STATE, "ema": {"module": {"conv1.weight": torch.ones(1)}}}, ["ema"]),
        ({"teacher": STATE, "student": {"conv1.weight": torch.ones(1)}}, ["student"]),
        ({"my_net": STATE, "epoch": 1}, []),
        ({f"module.{name}": value for name, value in STATE.items()} | {"n_averaged": torch.tensor(3)}, []),
        (
            {f"model.{name}": value for name, value in STATE.items()}
            | {f"ema_model.{name}": value + 1 for name, value in STATE.items()},
            ["ema_model. (3 tensors)"],
        ),
        ({"backbone": {}, "model": STATE}, []),
    ],
)
def test_other_networks_of_a_file_are_listed(content, unused):
    found = find_state_dict(content)
    assert {name: found.tensors[name] for name in NAMES} == STATE
    assert found.unused == unused


def test_parts_of_wrappers_within_a_name():
    assert [*find_state_dict({"backbone._orig_mod.conv1.weight": torch.ones(1)}).tensors] == ["backbone.conv1.weight"]


def test_the_network_that_is_wanted_counts():
    larger = {f"model.{index}.weight": torch.ones(1) for index in range(9)}
    content = larger | {f"ema.{name}": value for name, value in STATE.items()}
    assert len(find_state_dict(content).tensors) == 9
    assert find_state_dict(content, wanted=NAMES).tensors == STATE


def test_two_tensors_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"'module\.w' and another tensor have the same name"):
        find_state_dict({"w": torch.ones(1), "module.w": torch.ones(1)})


@pytest.mark.parametrize("content", [None, 3, [], {}, {"model": {}}, {1: torch.ones(1)}, {"model": [torch.ones(1)]}])
def test_content_without_named_tensors(content):
    assert find_state_dict(content).tensors == {}


def test_containers_in_themselves_end():
    content = {}
    content["model"] = content
    assert find_state_dict(content).tensors == {}


def changed(value: float, index: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tensor = torch.ones(2, 5, dtype=dtype)
    tensor.view(-1)[index] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("w", changed(float("nan")), "contains 1 NaN or infinite values of 10"),
        ("w", changed(float("-inf"), dtype=torch.float16), "contains 1 NaN or infinite values of 10"),
        ("w", changed(float("nan"), dtype=torch.bfloat16), "contains 1 NaN or infinite values of 10"),
        ("w", changed(1e300, dtype=torch.float64), "contains 1 NaN or infinite values of 10"),  # infinite in float32
        ("bn1.running_var", changed(-0.5), "contains 1 negative variances of 10"),
        ("w", torch.ones(2, device="meta"), r"has no values \(device meta\)"),
        ("w", torch.ones(2, dtype=torch.complex64), "must contain floating-point numbers, got torch.complex64"),
        ("w", torch.ones(2, dtype=torch.int8), "must contain floating-point numbers, got torch.int8"),
        ("w", torch.ones(2, dtype=torch.bool), "must contain floating-point numbers, got torch.bool"),
        ("w", torch.ones(2, 2).to_sparse(), "must be a dense tensor, got a tensor that is sparse_coo"),
        (
            "w",
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "must be a dense tensor, got a tensor that is quantized",
        ),
        ("w", torch.ones(1).expand(10**12), "declares 1000000000000 values, but the file contains fewer"),
        ("bn1.num_batches_tracked", torch.ones(2), r"must be one number, got torch.float32 of shape \[2\]"),
        ("w", np.ones(2), r"must be a tensor, got <ndarray of shape \(2,\)>"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quant")
def test_tensors_that_are_no_weights_are_named(name, tensor, problem):
    with pytest.raises(ValueError, match=rf"^tensor '{name}' of file x {problem}$"):
        check_weights({"fine": torch.ones(2), name: tensor}, "file x")


def test_further_tensors_are_counted():
    with pytest.raises(ValueError, match=r"^tensor 'a' of file x .* of 10 \(2 more tensors are not valid\)$"):
        check_weights({name: changed(float("nan")) for name in "abc"}, "file x")


def test_weights_and_statistics_are_valid():
    check_weights({"w": torch.ones(2), "bn.running_var": torch.tensor([0.0, -9e-6]), "empty": torch.ones(0)}, "x")
    check_weights({"num_batches_tracked": torch.tensor(3), "half": torch.ones(2, dtype=torch.float16)}, "x")
