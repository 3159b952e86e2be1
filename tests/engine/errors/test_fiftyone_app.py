"""The data set for FiftyOne, built with classes that have the documented names."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors.fiftyone_app import fiftyone_dataset, open_fiftyone


class Dataset:
    def __init__(self):
        self.samples = []

    def add_samples(self, samples):
        self.samples += samples


@pytest.fixture
def opened(monkeypatch):
    found = []
    app = SimpleNamespace(
        Dataset=Dataset,
        Sample=SimpleNamespace,
        Detections=SimpleNamespace,
        Detection=SimpleNamespace,
        list_datasets=list,
        launch_app=lambda dataset: SimpleNamespace(wait=lambda: found.append(dataset)),
    )
    monkeypatch.setitem(sys.modules, "fiftyone", app)
    return found


def test_samples(analysis, opened):
    dataset = fiftyone_dataset(analysis, Path("/photos"))
    assert [sample.filepath for sample in dataset.samples][:2] == ["/photos/0.jpg", "/photos/1.jpg"]
    first, second, third, last = dataset.samples
    assert [(one.error, one.tags) for one in first.predictions.detections] == [
        ("class", ["other_class"]),
        ("correct", []),
        ("duplicate", []),
    ]
    assert [(one.label, one.error, one.tags) for one in first.ground_truth.detections] == [
        ("<b>&cat", "found", []),
        ("dog\x1b", "class", ["other_class"]),
    ]
    assert [one.error for one in second.ground_truth.detections] == ["localization", "missed"]
    assert first.ground_truth.detections[0].bounding_box == [0.1, 0.125, 0.2, 0.25]  # fractions of width and height
    assert first.predictions.detections[0].confidence == 0.9
    assert [one.error for one in third.predictions.detections] == ["correct"]
    assert last.predictions.detections == []  # boxes of an image of unknown size
    open_fiftyone(dataset)
    assert opened == [dataset]


def test_a_missing_package_is_an_error_with_the_command(analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ValueError, match=r"FiftyOne cannot be imported .*pip install fiftyone"):
        fiftyone_dataset(analysis, Path())


def test_an_error_of_its_database_is_one_message(analysis, opened, monkeypatch):
    def fail():
        raise RuntimeError("no MongoDB")

    monkeypatch.setattr(sys.modules["fiftyone"], "list_datasets", fail)
    with pytest.raises(ValueError, match="FiftyOne cannot start: no MongoDB"):
        fiftyone_dataset(analysis, Path())
