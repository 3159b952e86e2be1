"""The file of a pipeline of Albumentations: what it may be, and the messages about others."""

import importlib.metadata

import pytest

from engine.building.data import build_train_loader, read_split
from engine.building.pipeline import load_pipeline
from engine.building.start import train
from engine.config import load_config

FLIP = """\
__version__: 2.0
transform:
  __class_fullname__: Compose
  p: 1.0
  transforms:
  - {__class_fullname__: HorizontalFlip, p: 1.0}
  - {__class_fullname__: RandomCrop, height: 20, width: 20, p: 1.0}
"""


def with_pipeline(tiny_config, file, *others):
    return load_config(tiny_config, [f"data.augment.albumentations={file}", *others])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.yaml", None, "none.yaml does not exist"),
        ("none.json", None, "none.json does not exist"),
        ("p.py", b"", "p.py must be a .yaml, .yml or .json file"),
        ("p.json", b"{", "p.json is not valid JSON"),
        ("p.yaml", b"a: 1\nb: [", "p.yaml is not valid YAML, line 2"),
        ("p.yaml", b"a: \xff", "p.yaml must be UTF-8, got another byte at position 3"),
    ],
)
def test_files_that_cannot_be_read(tiny_config, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    config = with_pipeline(tiny_config, tmp_path / name)
    with pytest.raises(ValueError, match=rf"^data\.augment\.albumentations {tmp_path}/{message}"):
        load_pipeline(config.data)


def test_without_the_library_a_run_ends_before_anything_is_written(tiny_config, tmp_path, monkeypatch):
    found = importlib.metadata.version

    def version(name):
        return found("a package that is not installed" if name == "albumentations" else name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (tmp_path / "p.yaml").write_text(FLIP)
    with pytest.raises(ValueError, match=r'which is not installed: pip install "albumentations'):
        train(with_pipeline(tiny_config, tmp_path / "p.yaml"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_other_channels_contradict_it(tiny_config):
    with pytest.raises(ValueError, match=r"albumentations must be null for images that are not RGB, got .*channels 4"):
        with_pipeline(tiny_config, "p.yaml", "data.channels=4", "data.pixel_range=[0, 4080]")


def test_a_preset_keeps_the_file_and_a_word_resets_it(tiny_config):
    both = with_pipeline(tiny_config, "p.yaml", "data.augment.preset=light", "data.augment.min_visibility=0.3")
    assert both.data.augment.description.endswith("albumentations p.yaml")
    assert "albumentations" in both.data.augment.strong_keys
    assert with_pipeline(tiny_config, "p.yaml", "data.augment=light").data.augment.albumentations is None


@pytest.mark.filterwarnings("ignore")
def test_training_reads_transformed_images(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    library = pytest.importorskip("albumentations")
    (tmp_path / "p.yaml").write_text(FLIP)
    library.save(load_pipeline(with_pipeline(tiny_config, tmp_path / "p.yaml").data)._compose, tmp_path / "p.json")
    images = []
    for name in ("p.yaml", "p.json"):
        config = with_pipeline(tiny_config, tmp_path / name, "data.augment.preset=none", "data.resize=stretch")
        loader = build_train_loader(config, read_split(config.data, "train"), pin_memory=False)
        images.append([image for batch in loader for image in batch.images])
    assert len(images[0]) > 1
    assert all((a == b).all() for a, b in zip(*images, strict=True))
    (tmp_path / "p.yaml").write_text(FLIP.replace("height: 20", "height: 2000"))
    config = with_pipeline(tiny_config, tmp_path / "p.yaml")
    with pytest.raises(ValueError, match=r"p\.yaml failed for an image of .*CropSizeError"):
        build_train_loader(config, read_split(config.data, "train"), pin_memory=False)
