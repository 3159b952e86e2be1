"""Batches on their device, and autocast."""

import pytest
import torch

from engine.devices.precision import autocast, set_tf32, to_device

CPU = torch.device("cpu")


def test_images_become_floats_from_0_to_1_and_targets_stay():
    images = [torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1), torch.zeros(3, 2, 4, dtype=torch.uint8)]
    targets = [{"boxes": torch.zeros(1, 4), "image_id": 7}, {"boxes": torch.zeros(0, 4), "image_id": 9}]
    moved, same = to_device(images, targets, CPU)
    assert [image.dtype for image in moved] == [torch.float32] * 2
    assert moved[0].flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert [target["image_id"] for target in same] == [7, 9]
    assert same[0]["boxes"].shape == (1, 4)
    assert images[0].dtype == torch.uint8
    assert images[0].flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast(amp, dtype):
    with autocast(CPU, amp):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_type_of_the_model_is_that_of_images_and_boxes():
    target = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64), "image_id": 7}
    images, (moved,) = to_device([torch.full((3, 1, 1), 51, dtype=torch.uint8)], [target], CPU, torch.float64)
    assert images[0].dtype == moved["boxes"].dtype == torch.float64
    assert images[0].flatten().tolist() == [0.2] * 3  # to the last bit
    assert moved["labels"].dtype == torch.int64


@pytest.mark.parametrize(("allowed", "precision"), [(True, "tf32"), (False, "ieee")])
def test_tf32(allowed, precision):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        set_tf32(allowed)
        assert (matmul.fp32_precision, conv.fp32_precision) == (precision, precision)
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
