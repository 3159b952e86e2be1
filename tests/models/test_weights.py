"""Pretrained weights are loaded, and one message reports all problems."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, WeightsEnum, get_model

from models import load_backbone_weights, resnet


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    """Return a state dict of torchvision, with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = get_model("resnet18", weights=None)
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 64, 64))
    return network.state_dict()


@pytest.fixture
def file(theirs, tmp_path) -> Path:
    torch.save(theirs, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def check_loaded(network, theirs) -> None:
    own = network.state_dict()
    for key, tensor in theirs.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(own[key], tensor), key


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_file(file, theirs, norm):
    network = resnet("resnet18", norm=norm)
    report = load_backbone_weights(network, "resnet18", str(file))
    check_loaded(network, theirs)
    counters = [key for key in theirs if key.endswith("num_batches_tracked")]
    assert report.new == []
    assert report.dropped == ([] if norm == "bn" else counters)
    assert report.loaded == len(theirs) - len(report.dropped)


def test_conv_offset_is_new(file, theirs):
    network = resnet("resnet18", dcn_v2_stages=[4])
    report = load_backbone_weights(network, "resnet18", str(file))
    check_loaded(network, theirs)
    expected = [f"layer4.{block}.conv2.conv_offset.{part}" for block in (0, 1) for part in ("weight", "bias")]
    assert report.new == expected
    assert not network.layer4[0].conv2.conv_offset.weight.any()


def test_own_state_dict_comes_back_with_its_offsets(tmp_path):
    trained, network = (resnet("resnet18", dcn_v2_stages=[4]) for _ in range(2))
    torch.nn.init.normal_(trained.layer4[1].conv2.conv_offset.weight)
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    report = load_backbone_weights(network, "resnet18", str(tmp_path / "own.pt"))
    assert (report.new, report.dropped) == ([], [])
    check_loaded(network, trained.state_dict())


def test_classifier_may_differ_or_be_absent(tmp_path, theirs):
    other = theirs | {"fc.weight": torch.zeros(7, 512)}
    del other["fc.bias"]
    torch.save(other, tmp_path / "seven.pth")
    network = resnet("resnet18", norm="bn")
    report = load_backbone_weights(network, "resnet18", str(tmp_path / "seven.pth"))
    assert report.new == ["fc.weight", "fc.bias"]
    assert report.dropped == ["fc.weight"]


def test_group_norm_needs_no_statistics(file):
    report = load_backbone_weights(resnet("resnet18", norm="gn"), "resnet18", str(file))
    assert report.new == []
    assert all("running_" in key or key.endswith("num_batches_tracked") for key in report.dropped)
    assert "bn1.running_mean" in report.dropped


def test_missing_file_is_named_as_written_and_as_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"weights file no/w\.pth does not exist \(resolved: {tmp_path}/no/w\.pth\)"):
        load_backbone_weights(resnet("resnet18"), "resnet18", "no/w.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"<html>404</html>", "it is a web page, not weights"),
        (b"PK\x03\x04" + b"\0" * 50, "it is truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, content, reason):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights file {tmp_path}/bad\.pth cannot be read: .*{reason}"):
        load_backbone_weights(resnet("resnet18"), "resnet18", str(tmp_path / "bad.pth"))


@pytest.mark.parametrize("wrap", [lambda state: [*state.values()], lambda state: {"epoch": 3}], ids=["list", "dict"])
def test_content_without_named_tensors_is_an_error(tmp_path, theirs, wrap):
    torch.save(wrap(theirs), tmp_path / "checkpoint.pth")
    with pytest.raises(
        ValueError, match=r"checkpoint\.pth must contain a state dict of tensors with torchvision's keys, got "
    ):
        load_backbone_weights(resnet("resnet18"), "resnet18", str(tmp_path / "checkpoint.pth"))


def test_a_container_and_a_prefix_are_removed(tmp_path, theirs):
    averaged = {key: tensor + 1 for key, tensor in theirs.items()}
    torch.save({"model": {f"module.{key}": value for key, value in theirs.items()}, "ema": averaged}, tmp_path / "w.pt")
    network = resnet("resnet18")
    report = load_backbone_weights(network, "resnet18", str(tmp_path / "w.pt"))
    check_loaded(network, theirs)
    assert report.unused == ["ema"]


def test_a_whole_detector_is_sent_to_its_own_option(tmp_path, theirs):
    torch.save({"format": 2, "class_names": ["a"], "model": theirs}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is a whole detector of this project: set model\.weights to it"):
        load_backbone_weights(resnet("resnet18"), "resnet18", str(tmp_path / "w.pt"))


def test_weights_of_another_framework_are_sent_to_the_converter(tmp_path, theirs):
    torch.save({f"backbone.{key}": tensor for key, tensor in theirs.items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"missing tensors, first 'conv1\.weight'; convert files of other frameworks"):
        load_backbone_weights(resnet("resnet18"), "resnet18", str(tmp_path / "w.pt"))


def test_weights_that_are_not_finite_are_an_error(tmp_path, theirs):
    bad = theirs["layer3.0.conv1.weight"].clone()
    bad[0, 0, 0] = float("nan")
    torch.save(theirs | {"layer3.0.conv1.weight": bad}, tmp_path / "w.pt")
    network = resnet("resnet18")
    before = network.conv1.weight.clone()
    with pytest.raises(
        ValueError, match=r"'layer3\.0\.conv1\.weight' of weights \S+w\.pt contains 3 NaN or infinite values"
    ):
        load_backbone_weights(network, "resnet18", str(tmp_path / "w.pt"))
    assert torch.equal(network.conv1.weight, before), "no tensor is loaded after an error"


def test_weights_of_another_network(file):
    with pytest.raises(ValueError, match=r"do not match resnet50: \d+ tensors with another shape, first 'layer1"):
        load_backbone_weights(resnet("resnet50"), "resnet50", str(file))


def test_missing_tensors_are_counted_and_named(tmp_path, theirs):
    torch.save({key: tensor for key, tensor in theirs.items() if "layer4.1.conv" not in key}, tmp_path / "few.pth")
    network = resnet("resnet18")
    before = network.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"2 missing tensors, first 'layer4\.1\.conv1\.weight'"):
        load_backbone_weights(network, "resnet18", str(tmp_path / "few.pth"))
    assert torch.equal(network.conv1.weight, before), "no tensor is loaded after an error"


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_torchvision_weights(monkeypatch, theirs, name):
    asked = []

    def fake(self, *args, **kwargs):
        asked.append((self, kwargs))
        return theirs

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fake)
    network = resnet("resnet18", dcn_v2_stages=[3, 4])
    load_backbone_weights(network, "resnet18", name)
    check_loaded(network, theirs)
    assert asked == [(ResNet18_Weights.IMAGENET1K_V1, {"progress": True, "check_hash": True})]


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), ConnectionResetError("reset"), RuntimeError("invalid hash value")],
    ids=["no network", "cut off", "other checksum"],
)
def test_a_failed_download_gives_advice(monkeypatch, tmp_path, error):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="weights DEFAULT of resnet18") as raised:
        load_backbone_weights(resnet("resnet18"), "resnet18", "DEFAULT")
    message = str(raised.value)
    for part in (
        str(error),
        ResNet18_Weights.DEFAULT.url,
        f"{tmp_path}/hub/checkpoints",
        "model.backbone.weights",
        "null",
    ):
        assert part in message


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04" + b"\0" * 50], ids=["empty", "text", "zip"])
def test_a_broken_file_in_the_cache_gives_advice(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    with pytest.raises(ValueError, match="weights DEFAULT of resnet18 could not be downloaded") as raised:
        load_backbone_weights(resnet("resnet18"), "resnet18", "DEFAULT")
    assert str(cached.parent) in str(raised.value)


def test_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError, match=r"no weights 'IMAGENET' for resnet50, known: DEFAULT, .*IMAGENET1K_V2.*or use a file"
    ):
        load_backbone_weights(resnet("resnet50"), "resnet50", "IMAGENET")
