"""Splits are partitions with whole groups, stratified, and the same for any order of files."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DatasetError
from data.splitting import group_names, join_groups, links_of, parse_fractions, split_dataset, stratify

# images as lists of class ids, with the number of their group
IMAGES = st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(1, 4), max_size=3)), min_size=3, max_size=25)


def coco(images):
    entries = [{"id": 10 + index, "file_name": f"{index}.png"} for index in range(len(images))]
    pairs = [(10 + index, category) for index, (_, categories) in enumerate(images) for category in categories]
    annotations = [
        {"id": key, "image_id": image, "category_id": category} for key, (image, category) in enumerate(pairs)
    ]
    return {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": key, "name": "x"} for key in range(1, 5)],
    }


@settings(max_examples=50)
@given(IMAGES, st.sampled_from(["0.8/0.2", "0.5/0.5", "0.7/0.2/0.1"]), st.integers(0, 3))
def test_every_image_is_in_one_split_with_its_group(images, text, seed):
    raw, fractions = coco(images), parse_fractions(text)
    links = links_of([str(group) for group, _ in images])
    groups = {group for group, _ in images}
    if len(groups) < len(fractions):
        with pytest.raises(DatasetError, match=f"{len(fractions)} splits need at least {len(fractions)} groups"):
            split_dataset(raw, fractions, links, seed)
        return
    result, count = split_dataset(raw, fractions, links, seed)
    assert count == len(groups)
    for part in ("images", "annotations"):
        found = [entry["id"] for split in result.values() for entry in split[part]]
        assert sorted(found) == sorted(entry["id"] for entry in raw[part])
    assert [*result] == [*fractions]
    group_of = {10 + index: group for index, (group, _) in enumerate(images)}
    held = [{group_of[image["id"]] for image in split["images"]} for split in result.values()]
    assert all(held), "no split is empty"
    assert not any(a & b for a, b in itertools.combinations(held, 2))
    for split in result.values():
        ids = [image["id"] for image in split["images"]]
        assert ids == sorted(ids)
        assert {annotation["image_id"] for annotation in split["annotations"]} <= {*ids}
    assert split_dataset(raw, fractions, reversed(links), seed)[0] == result
    if len(groups) == len(images):  # the rarest class is on every side, if it has enough images
        has = [sum(category in own for _, own in images) for category in range(1, 5)]
        rarest = 1 + min((n, category) for category, n in enumerate(has) if n)[1] if any(has) else None
        if rarest and has[rarest - 1] >= len(fractions):
            assert all(any(a["category_id"] == rarest for a in split["annotations"]) for split in result.values())


def test_classes_and_images_are_divided_by_the_fractions():
    """1,000 images with 12 classes: each class within 1.5 images of its fraction, which a random split misses."""
    draw = np.random.default_rng(1)
    has_class = draw.random((1000, 12)) < np.geomspace(0.004, 0.3, 12)
    fractions = (0.7, 0.2, 0.1)

    def largest_difference(split_of):
        counts = np.array([has_class[split_of == split].sum(0) for split in range(3)])
        images = np.bincount(split_of, minlength=3)
        assert abs(images - 1000 * np.array(fractions)).max() < 60
        return abs(counts - np.outer(fractions, has_class.sum(0))).max()

    assert largest_difference(stratify(np.arange(1000), has_class, fractions, 0)) <= 1.5
    assert largest_difference(draw.choice(3, 1000, p=fractions)) > 5
    seeds = [tuple(stratify(np.arange(1000), has_class, fractions, seed)) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_linked_images_form_groups_also_over_others():
    random.seed(3)
    links = [(0, 4), (4, 2), (1, 5), (7, 5)]
    random.shuffle(links)
    groups = join_groups(8, links).tolist()
    assert [sorted(i for i in range(8) if groups[i] == group) for group in dict.fromkeys(groups)] == [
        [0, 2, 4],
        [1, 5, 7],
        [3],
        [6],
    ]
    assert join_groups(2, []).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("folder", ["a", "a/b", "."]),
        (r"scene(\d+)_", ["1", "1", "23"]),
        (r"scene\d+", ["scene1", "scene1", "scene23"]),
    ],
)
def test_groups_of_names(rule, names):
    assert group_names(["a/scene1_x.png", "a/b/scene1_y.png", "scene23_.png"], rule) == names


def test_names_without_a_group_are_errors():
    with pytest.raises(
        DatasetError, match=r"images whose name has no match of the group 'b\+': 4; the first: a0, a1, a2, \.\.\."
    ):
        group_names(["bb", *(f"a{number}" for number in range(4))], "b+")
    with pytest.raises(ValueError, match="a group must be 'folder' or a regular expression, got '\\(': missing"):
        group_names([], "(")


@pytest.mark.parametrize(
    "text", ["", "0.8", "0.8/0.3", "1/0", "0.5/0.3/0.1/0.1", "a/b", "nan/0.5", "1.5/-0.5", "80/20"]
)
def test_other_fractions_are_errors(text):
    with pytest.raises(ValueError, match="must be two or three fractions above 0 whose sum is 1"):
        parse_fractions(text)
    assert parse_fractions("0.7/0.2/0.1") == {"train": 0.7, "val": 0.2, "test": 0.1}
