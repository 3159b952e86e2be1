"""Options for classes affect training and evaluation, and the start of training reports them."""

import json
from collections import Counter

import pytest

from data import CocoDetection, eval_transform
from engine.building.classes import class_weights, describe_changes, describe_rare_classes
from engine.building.data import build_train_loader, read_split
from engine.config.loading import load_config


@pytest.fixture
def thinned(tiny_config, shapes, tmp_path):
    """`thinned(*overrides)`: a config whose first class is in one of 12 images, and its training split."""
    raw = json.loads((shapes / "annotations/train.json").read_text())
    first, *others = [category["id"] for category in raw["categories"]]
    for number, annotation in enumerate(raw["annotations"]):
        annotation["category_id"] = others[number % len(others)]
    raw["annotations"][0]["category_id"] = first
    (tmp_path / "train.json").write_text(json.dumps(raw))

    def build(*overrides):
        config = load_config(tiny_config, [f"data.train.annotations={tmp_path}/train.json", *overrides])
        return config, read_split(config.data, "train", check_images=False)

    return build


def test_images_of_a_rare_class_are_repeated(thinned):
    config, split = thinned("data.repeat_threshold=0.333333333", "data.num_workers=0")
    loader = build_train_loader(config, split, pin_memory=False)
    (rare,) = {split.arrays.image_ids[0].item()}
    for epoch in range(2):
        loader.batch_sampler.set_position(epoch)
        uses = Counter(target["image_id"] for batch in loader for target in batch.targets)
        assert uses[rare] == 2, "sqrt((1/3) / (1/12)) = 2"
        assert uses.total() == loader.batch_sampler.images > 12
    text = describe_rare_classes(
        loader.dataset.dataset, split.class_names, threshold=config.data.repeat_threshold, epoch_images=13
    )
    head, _, _, rarest, *_ = text.splitlines()
    assert "classes have a factor above 1; 13 images in an epoch instead of 12" in head
    assert rarest.split() == [split.class_names[0], "1", "1", "2.00"]


def test_without_a_rare_class_nothing_is_repeated(thinned):
    config, split = thinned("data.repeat_threshold=0.01")
    dataset = build_train_loader(config, split, pin_memory=False).dataset.dataset
    text = describe_rare_classes(dataset, split.class_names, threshold=0.01, epoch_images=12)
    assert f"0 of {len(split.class_names)} classes have a factor above 1; no image is repeated" in text
    assert describe_rare_classes(dataset, split.class_names, threshold=None, epoch_images=12) is None
    many = [f"class {number}" for number in range(30)]
    assert describe_rare_classes(dataset, many, threshold=0.01, epoch_images=12).endswith(
        "and 10 classes with more images"
    )


def test_both_splits_and_their_ground_truth_have_the_changed_classes(tiny_config, shapes):
    raw = json.loads((shapes / "annotations/val.json").read_text())
    first, second, *_ = (category["name"] for category in raw["categories"])
    config = load_config(tiny_config, [f"data.classes.merge.both=[{first}, {second}]", "data.classes.keep=[both]"])
    ids = {category["id"] for category in raw["categories"][:2]}
    splits = {name: read_split(config.data, name, check_images=False) for name in ("train", "val")}
    assert [split.class_names for split in splits.values()] == [["both"], ["both"]]
    boxes = [annotation["bbox"] for annotation in raw["annotations"] if annotation["category_id"] in ids]
    assert [annotation["bbox"] for annotation in splits["val"].raw["annotations"]] == boxes
    assert {annotation["category_id"] for annotation in splits["val"].raw["annotations"]} == {min(ids)}
    loader = build_train_loader(config, splits["train"], pin_memory=False)
    assert {label for batch in loader for target in batch.targets for label in target["labels"].tolist()} == {1}
    assert len(loader.dataset) == (splits["train"].arrays.counts > 0).sum()
    before = len(raw["categories"])
    assert describe_changes(splits)[1] == (
        f"data.classes in val: {before} -> 1 classes, {len(boxes)} of {len(raw['annotations'])} annotations"
    )
    assert describe_changes({"val": read_split(load_config(tiny_config).data, "val", check_images=False)}) == []


def test_the_weights_of_classes_reach_the_loss(thinned, tiny_config, tmp_path, assembler):
    """By the effective number of boxes, with a mean of 1; or by name."""
    config, split = thinned("train.class_weights=balanced")
    names, boxes = split.class_names, Counter(split.arrays.labels.tolist())
    each = [0.001 / (1 - 0.999 ** boxes[label]) for label in range(1, len(names) + 1)]
    wanted = [len(each) * weight / sum(each) for weight in each]
    found = class_weights(split, config.train.class_weights)
    assert found == pytest.approx(wanted)
    assert max(found) == found[0] > 3
    text = describe_rare_classes(
        CocoDetection(split, eval_transform()), names, threshold=None, epoch_images=12, weights=found
    )
    assert text.splitlines()[3].split() == [names[0], "1", "1", f"{found[0]:.2f}"]

    trainer = assembler(tiny_config, tmp_path, [f"train.class_weights.{names[1]}=2.5"], metrics_logger=None)
    assert trainer.updater.model.roi_heads.class_weights.tolist() == [1, 1, 2.5, *[1] * (len(names) - 2)]
    with pytest.raises(ValueError, match=f"no class has the name 'x{names[0]}'; did you mean '{names[0]}'"):
        class_weights(split, {f"x{names[0]}": 2, names[1]: 3})
