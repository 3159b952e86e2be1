"""Pipelines of Albumentations: pixels, boxes, masks and ignored boxes stay together, and runs can be repeated."""

import importlib.metadata
import json
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data import CocoDetection, TrainTransform, load_annotations, train_loader
from data.albumentations_pipeline import Pipeline

WIDTH, HEIGHT = 83, 61
# (x, y, width, height); the second one fills the corner of the image, the last one is a crowd region
BOXES = [(5, 7, 30, 20), (45, 30, 38, 31), (60, 3, 15, 11), (12, 40, 20, 16)]


@pytest.fixture(scope="module")
def albumentations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
            return pytest.importorskip("albumentations")


@pytest.fixture
def annotations(tmp_path):
    """Three images in which each object is an ellipse or a rectangle of another colour, on black."""
    entries = {"images": [], "annotations": [], "categories": []}
    entries["categories"] = [{"id": index + 1, "name": f"class {index}"} for index in range(len(BOXES))]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for image in range(3):
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for index, (x, y, width, height) in enumerate(BOXES):
            inside = ((columns + 0.5 - x - width / 2) / width) ** 2 + ((rows + 0.5 - y - height / 2) / height) ** 2
            mask = (rows >= y) & (columns >= x) if index == 1 else inside <= 0.25
            pixels[mask] = colour_of(index)
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            entries["annotations"].append(
                {
                    "id": 10 * image + index + 1,
                    "image_id": image + 1,
                    "category_id": index + 1,
                    "bbox": [x, y, width, height],
                    "area": int(mask.sum()),
                    "iscrowd": int(index == len(BOXES) - 1),
                    "segmentation": rle | {"counts": rle["counts"].decode()},
                }
            )
        Image.fromarray(pixels).save(tmp_path / f"{image}.png")
        entries["images"].append({"id": image + 1, "file_name": f"{image}.png", "width": WIDTH, "height": HEIGHT})
    (tmp_path / "a.json").write_text(json.dumps(entries))
    return load_annotations(tmp_path, tmp_path / "a.json", invalid_boxes="raise", invalid_masks="raise")


def colour_of(index: int) -> int:
    return 50 * (index + 1)


def dataset_of(annotations, compose, *, masks, content=None):
    transform = TrainTransform(lambda size, fill: [], fill=(0, 0, 0), horizontal_flip=0.0)
    pipeline = Pipeline("p.json", json.loads(json.dumps(content or compose.to_dict())))
    return CocoDetection(annotations, transform, masks=masks, pipeline=pipeline)


def box_of(where: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(where)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def moving(library):
    """A pipeline without interpolation of colours, of kinds of which each moves pixels in another way."""
    return library.Compose(
        [
            library.RandomRotate90(p=0.5),
            library.OneOf([library.HorizontalFlip(p=1), library.Transpose(p=1)], p=0.7),
            library.Affine(rotate=(-30, 30), scale=(0.8, 1.3), interpolation=0, p=0.6),
            library.BBoxSafeRandomCrop(erosion_rate=0.3, p=0.4),
            library.RandomCrop(40, 45, pad_if_needed=True, p=0.4),
            library.ElasticTransform(alpha=20, sigma=6, interpolation=0, p=0.2),
        ],
        bbox_params=library.BboxParams("coco", ["any"]),
    )


@pytest.mark.parametrize("masks", [True, False])
def test_every_pixel_stays_with_its_object(albumentations, annotations, masks):
    """Each object has a colour, which shows where it is after the transforms.

    OpenCV rounds the places of images of three and of two channels in another way, which a few pixels show.
    """
    dataset = dataset_of(annotations, moving(albumentations), masks=masks)
    numbers = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = dataset.read(seed % 3)
        pixels = image[0].numpy()
        assert {*np.unique(pixels).tolist()} <= {0, *map(colour_of, range(len(BOXES)))}
        labels = target["labels"].tolist()
        numbers.add(len(labels))
        assert len(labels) == len(target["boxes"]) == len({*labels})
        for index in range(len(BOXES) - 1):
            where = pixels == colour_of(index)
            assert where.sum() <= 5 or index + 1 in labels
            if index + 1 not in labels:
                continue
            box = target["boxes"][labels.index(index + 1)].numpy()
            if masks:
                mask = target["masks"][labels.index(index + 1)].numpy()
                assert (mask != where).sum() <= 5
                assert box.tolist() == box_of(mask)
            elif where.any():
                inner = np.array(box_of(where))
                assert (box[:2] <= inner[:2] + 1).all()
                assert (box[2:] >= inner[2:] - 1).all()
        region = pixels == colour_of(len(BOXES) - 1)
        if region.sum() > 5:
            outer, inner = target["ignored"][0].numpy(), np.array(box_of(region))
            assert (outer[:2] <= inner[:2]).all()
            assert (outer[2:] >= inner[2:]).all()
    assert len(numbers) > 1


def corners(boxes):
    return np.array([(x, y, x + width, y + height) for x, y, width, height in boxes], dtype=np.float32)


def test_boxes_without_masks_are_those_of_the_library(albumentations, annotations):
    library = albumentations
    steps = [library.Affine(rotate=(-30, 30), p=1), library.RandomCrop(40, 50, p=1), library.HueSaturationValue(p=1)]
    boxes = library.BboxParams("pascal_voc", ["objects"], min_visibility=0.3, clip=True)
    dataset = dataset_of(annotations, library.Compose(steps, bbox_params=boxes), masks=False)
    own = library.Compose(steps, bbox_params=boxes)
    stored = np.asarray(Image.open(annotations.image_dir / "1.png"))
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = dataset.read(1)
        torch.manual_seed(seed)
        own.set_random_state(*states(int(torch.randint(2**62, ()))))
        found = own(image=stored, bboxes=corners(BOXES[:3]), objects=np.arange(3))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), found["image"])
        np.testing.assert_allclose(target["boxes"].numpy(), found["bboxes"].reshape(-1, 4), atol=1e-3)


def states(seed):
    return np.random.default_rng(seed), random.Random(seed)


def test_a_border_of_copies_has_one_mask_for_each_object(albumentations, annotations):
    """Reflection shows an object several times, in the image and in its mask."""
    library = albumentations
    compose = library.Compose([library.PadIfNeeded(150, 170, border_mode=2, p=1)])
    image, target = dataset_of(annotations, compose, masks=True).read(0)
    expected = [image[0] == colour_of(index) for index in range(3)]
    assert torch.equal(target["masks"].bool(), torch.stack(expected))
    assert expected[0].sum() > 2 * 400


def test_draws_depend_only_on_the_seed_of_the_image(albumentations, annotations):
    """Workers and steps of other sizes read the same images; probabilities of two transforms are independent."""
    library = albumentations
    both = library.Compose([library.HorizontalFlip(p=0.5), library.VerticalFlip(p=0.5), library.GaussNoise(p=0.5)])
    dataset = dataset_of(annotations, both, masks=True)

    def read(workers, batch_size, accum):
        loader = train_loader(dataset, batch_size=batch_size, grad_accum_steps=accum, workers=workers, seed=3)
        return {
            target["seed"]: (image.numpy().tobytes(), target["boxes"].tolist())
            for batch in loader
            for image, target in zip(batch.images, batch.targets, strict=True)
        }

    assert read(0, 2, 1) == read(2, 1, 2)
    flips = set()
    for seed in range(40):
        torch.manual_seed(seed)
        x, y = dataset.read(0)[1]["boxes"][0, :2].tolist()
        flips.add((x > WIDTH / 2, y > HEIGHT / 2))
    assert len(flips) == 4


def test_weak_epochs_and_dummies_have_no_pipeline(albumentations, annotations):
    dataset = dataset_of(annotations, albumentations.Compose([albumentations.RandomCrop(60, 70, p=1)]), masks=True)
    assert dataset.read(0)[0].shape[1:] == (60, 70)
    assert dataset.read(0, strong=False)[0].shape[1:] == (HEIGHT, WIDTH)
    assert dataset.dummy()[0].shape[1:] == (64, 64)


def test_the_trial_finds_what_fails_only_with_some_images(albumentations):
    library = albumentations
    crop = Pipeline("p.json", library.Compose([library.RandomCrop(60, 70, p=0.3)]).to_dict())
    crop.check(70, 60)
    with pytest.raises(ValueError, match=r"^p\.json failed for an image of 70x59 pixels, in a trial: CropSizeError"):
        crop.check(70, 59)
    for step in (library.Normalize(p=0.5), library.ToTensorV2(p=1)):
        with pytest.raises(ValueError, match=r"^p\.json must return RGB images \(H, W, 3\) of torch.uint8"):
            Pipeline("p.json", library.Compose([step]).to_dict()).check(90, 70)


def wrong(library):
    """Contents that cannot be used, and the messages about them."""
    step = {"__class_fullname__": "HorizontalFlip", "p": 0.5}
    compose = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [step]}
    return [
        ([1], "must contain a Compose"),
        ({"transform": step}, "must contain a Compose"),
        ({"transform": compose | {"transforms": [{"__class_fullname__": "Flipp"}]}}, "is not a valid pipeline.*Flipp"),
        ({"transform": compose | {"transforms": [step | {"q": 1}]}}, "HorizontalFlip has no argument q"),
        ({"transform": compose | {"transforms": 3}}, "is not a valid pipeline"),
        ({"transform": compose | {"bbox_params": 3}}, "bbox_params must be a mapping or null, got 3"),
        (
            library.Compose([library.MaskDropout(), library.Affine(fill_mask=7)]).to_dict(),
            "MaskDropout changes masks; Affine has fill_mask 7.0, which must be 0 or null",
        ),
        (library.Compose([library.RandomCropNearBBox()]).to_dict(), "RandomCropNearBBox needs cropping_bbox"),
        (library.Compose([library.Pad3D(3)]).to_dict(), "Pad3D moves pixels without their boxes"),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_contents_that_cannot_be_used(albumentations):
    for content, message in wrong(albumentations):
        with pytest.raises(ValueError, match=f"^p.json.*{message}"):
            Pipeline("p.json", content)


def test_without_the_library_the_message_has_the_command(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=r'not installed: pip install "albumentations==2\.0\.\*"$'):
        Pipeline("p.json", {"transform": {}})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.4.24")
    with pytest.raises(ValueError, match=r"needs Albumentations 2\.0\.x, got 1\.4\.24"):
        Pipeline("p.json", {"transform": {}})
