"""`pip install .` installs the complete packages `dcn` and `resnet_dcn`, and no package with a general name."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms.v2.functional import to_pil_image

from engine.building.model import build_model
from engine.config.loading import load_config
from engine.inference.predictor import load_predictor
from engine.runs.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = {"dcn": "dcn", "models": "resnet_dcn/models", "resnet_dcn": "resnet_dcn"}
# A program with its own folder `models`, which trains a small detector for a step and runs it.
PROGRAM = """
import dcn, models, resnet_dcn.models, torch
from resnet_dcn.models import build_detector, replaced_convs, resnet

assert models.WHOSE == "own"
assert resnet_dcn.models.__file__.startswith({site!r}) and dcn.__file__.startswith({site!r})
body = resnet("resnet18_vd", dcn_v2_stages=[3, 4], norm="gn")
assert [row.count for row in replaced_convs(body)] == [2, 2]
config = {{"data": {{"min_size": 64, "max_size": 96}}}}
heads = {{"box_head_channels": 32}}
config["model"] = {{"detector": "faster_rcnn", "fpn": {{"out_channels": 16}}, "faster_rcnn": heads}}
model = build_detector(config, 3, body=body)
image = torch.rand(3, 64, 90)
target = dict(boxes=torch.tensor([[8.0, 10, 40, 50]]), labels=torch.tensor([2]))
sum(model([image], [target]).values()).backward()
assert body.layer4[1].conv2.conv_offset.weight.grad.abs().sum() > 0
assert sorted(model.eval()([image])[0]) == ["boxes", "labels", "scores"]
print("done")
"""


def environment() -> dict[str, str]:
    """Return the environment of a process without access to the clone."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy, so that no files remain in the clone."""
    folder = tmp_path_factory.mktemp("build")
    big = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "datasets", "docs", "runs", "tests")
    shutil.copytree(ROOT, folder / "clone", ignore=big)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "clone"),
    ]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Return the folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, env=environment(), check=True)
    return folder


@pytest.fixture(scope="module")
def metadata(site) -> Distribution:
    return PathDistribution(next(site.glob("*.dist-info")))


def test_exactly_the_files_on_the_disk(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        texts = {name: archive.read(name) for name in found}
    expected = {}
    for folder, place in INSTALLED.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                expected[f"{place}/{file.relative_to(ROOT / folder).as_posix()}"] = file.read_bytes()
    assert texts == expected
    assert {"dcn/py.typed", "resnet_dcn/models/py.typed", "resnet_dcn/models/resnet.py"} <= found
    assert "resnet_dcn/__init__.py" in found


def test_a_program_with_its_own_models(site, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("WHOSE = 'own'\n")
    (tmp_path / "program.py").write_text(PROGRAM.format(site=str(site)))
    command = [sys.executable, "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment() | {"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


NAMES = ["bar", "cross", "star", "tee", "triangle"]
# A program that loads a trained detector, in a process without the clone.
LOADING = """
import json, sys
from resnet_dcn import DETECTORS, Predictor, load_detector

files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
mine = {name for name, file in files.items() if file.startswith(sys.argv[1])}
assert {"resnet_dcn", "resnet_dcn.models.predictor", "dcn"} <= mine, mine
heavy = {"data", "engine", "matplotlib", "models", "pycocotools", "pydantic", "scipy", "tensorboard", "yaml"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
assert "faster_rcnn" in DETECTORS and load_detector("run").class_names[-1] == "triangle"
found = Predictor.load("run", score_threshold=0)("image.png")
print(json.dumps({key: getattr(value, "tolist", lambda: value)() for key, value in found.items()}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_config) -> tuple[Path, dict]:
    """Return a folder with a checkpoint in `run` and an image, and the clone's detections in it."""
    folder = tmp_path_factory.mktemp("trained")
    config = load_config(tiny_config, ["model.backbone.dcn_v2_stages=[2]"])
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, len(NAMES))
    (folder / "run").mkdir()
    about = {"config": config.model_dump(mode="json"), "class_names": NAMES, "category_ids": [1, 2, 3, 4, 5]}
    save_checkpoint(folder / "run/last.pt", about | {"model": model.state_dict(), "ema": None, "step": 1})
    pixels = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    to_pil_image(pixels).save(folder / "image.png")
    found = load_predictor(folder / "run", score_threshold=0)(folder / "image.png")
    assert len(found["scores"])
    return folder, {key: value if key == "names" else value.tolist() for key, value in found.items()}


@pytest.mark.parametrize("place", ["wheel", "clone"])
def test_a_trained_detector_is_loaded(site, trained, place):
    """Loading works from the wheel and from the root of a plain clone."""
    folder, expected = trained
    root = site if place == "wheel" else ROOT
    (folder / "program.py").write_text(LOADING)
    done = subprocess.run(
        [sys.executable, "program.py", str(root)],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == expected.keys()
    assert found["names"] == expected["names"]
    for key in ("boxes", "labels", "scores"):
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(expected[key]))


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the Python blocks of a page, each with its documented output."""
    return re.findall(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", page, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_page_on_the_library(site, trained, tmp_path):
    """All examples run unchanged, with random weights instead of torchvision's download."""
    page, hub = (ROOT / "docs/reference/models.md").read_text(encoding="utf-8").split("## torch.hub")
    programs, printed = zip(*blocks(page), strict=True)
    assert len(programs) == len(re.findall("^```python$", page, re.MULTILINE)) >= 5
    (tmp_path / "program.py").write_text("\n".join(programs))
    shutil.copytree(trained[0] / "run", tmp_path / "runs/demo_dcn")
    shutil.copy(tmp_path / "runs/demo_dcn/last.pt", tmp_path / "runs/demo_dcn/best.pt")
    shutil.copy(trained[0] / "image.png", tmp_path / "photo.jpg")
    cached = tmp_path / "hub/checkpoints" / ResNet50_Weights.DEFAULT.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), cached)
    variables = environment() | {"PYTHONPATH": str(site), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "".join(printed)), done.stderr
    for program, _ in blocks(hub):
        compile(program, "docs/reference/models.md", "exec")


def requirements(file: str) -> set[str]:
    """Return the lines of a requirements file, without comments; pyproject.toml does not support pip's options."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line}


def test_requirements(metadata):
    """Two packages, with the bounds of requirements.txt; training and export are extras."""
    needed = {}
    for line in metadata.requires:
        requirement, _, extra = line.partition("; extra == ")
        needed.setdefault(extra.strip("'\""), set()).add(requirement)
    assert needed == {
        "": {line for line in requirements("requirements.txt") if line.startswith("torch")},
        "train": requirements("requirements.txt"),
        "export": requirements("requirements-export.txt"),
    }
    assert {re.split("[<>=!~]", line)[0] for line in needed[""]} == {"torch", "torchvision"}


def test_metadata(metadata):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = metadata.metadata
    assert (about["Name"], metadata.version) == ("resnet-dcn", project["version"])
    assert about["License-Expression"] == "MIT"
    assert metadata.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert about["Description-Content-Type"] == "text/markdown"
    assert (about.get_payload() or about["Description"]).strip() == (ROOT / "README.md").read_text(
        encoding="utf-8"
    ).strip()
    python = project["requires-python"].removeprefix(">=")
    assert about["Requires-Python"] == f">={python}"


@pytest.mark.parametrize("folder", INSTALLED)
def test_the_installed_folders_import_nothing_else(folder):
    """Only requirements of the wheel, and three packages that are imported where they are needed.

    Triton comes with some builds of torch. Files of safetensors, and TIFF files of several channels, need a package.
    """
    brought = {"numpy", "PIL"}  # by torchvision
    allowed = {
        "dcn": {"torch", "torchvision", "triton"},
        "models": {"torch", "torchvision", "dcn", "safetensors", "tifffile", *brought},
        "resnet_dcn": set(),
    }[folder]
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) <= allowed
    assert folder == "resnet_dcn" or "torch" in found
