"""The figure of training images: the stored image, and draws as training reads them."""

from dataclasses import replace

import torch

from engine.building.augmented import draw_augmented
from engine.building.data import read_split
from engine.config import load_config


def test_the_first_column_is_stored_and_the_others_are_augmented(tiny_config):
    """Without augmentation all columns are equal; the random state of the run stays."""
    overrides = {"plain": ["data.augment=none"], "strong": ["data.augment=strong", "data.augment.mosaic=1"]}
    configs = {name: load_config(tiny_config, ["data.min_size=80", *more]) for name, more in overrides.items()}
    split = read_split(configs["plain"].data, "train", check_images=False)
    state = torch.get_rng_state()
    plain, strong = (draw_augmented(config, split, images=2, draws=3, side=96) for config in configs.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.shape == strong.shape
    cells = [figure[:, -204:].chunk(4, dim=2) for figure in (plain, strong)]
    assert all(torch.equal(cell, cells[0][0]) for cell in cells[0])
    assert torch.equal(cells[1][0], cells[0][0])
    assert not any(torch.equal(cell, cells[0][0]) for cell in cells[1][1:])


def test_images_that_cannot_be_read_are_left_out(tiny_config, tmp_path):
    config = load_config(tiny_config, ["data.augment=none"])
    split = read_split(config.data, "train", check_images=False)
    gone = replace(split, image_dir=tmp_path)
    assert draw_augmented(config, gone, images=2, draws=1, side=64) is None
