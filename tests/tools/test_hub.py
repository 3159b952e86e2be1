"""hubconf.py in other programs, whose own folders have the names of this project's packages, imported or not.

The clone is in the cache of torch.hub; nothing is downloaded.
"""

import json
from pathlib import Path

import pytest
import torch

from dcn import DeformConv2d
from engine.inference.restored import restore_model
from engine.weights.loading import load_trained
from models import DETECTORS, RESNETS, load_backbone_weights, resnet
from models.faster_rcnn import faster_rcnn
from tests.detectors import assemble

ROOT = Path(__file__).resolve().parents[2]
IMAGE = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
BACKBONE = {"name": "resnet18_vd", "dcn_v2_stages": [3, 4], "dcn_every": 2}
OPTIONS = {"min_size": 64, "max_size": 96, "box_head_channels": 32}
START = """
import json, sys, torch
REPO, HUB, IMAGE = "someone/resnet-dcn:main", {"skip_validation": True, "trust_repo": True}, torch.load("image.pt")
torch.hub.set_dir("hub")
"""
USE = """
def plain(detections):
    return [{name: tensor.tolist() for name, tensor in found.items()} for found in detections]

out = {"entries": torch.hub.list(REPO, **HUB), "help": torch.hub.help(REPO, "faster_rcnn", **HUB)}
backbone, options, run, weights = json.load(open("options.json"))
with torch.inference_mode():
    torch.manual_seed(0)
    out["resnet"] = torch.hub.load(REPO, "resnet18_dcn", weights=weights, **HUB).eval()(IMAGE[None]).tolist()
    torch.manual_seed(0)
    model = torch.hub.load(REPO, "faster_rcnn", 3, backbone=backbone, fpn={"out_channels": 16}, **options, **HUB)
    out["faster_rcnn"] = plain(model.eval()([IMAGE]))
    model = torch.hub.load(REPO, "detector", run, **HUB)
    out["detector"], out["class_names"] = plain(model([IMAGE])), model.class_names
    out["modules"] = sorted({type(module).__module__ for module in model.modules()})
"""
OWN = """
import data, models, models.resnet
out["own"] = [models.WHOSE, models.resnet.WHOSE, data.WHOSE]
out["short names"] = sorted(name for name in sys.modules if name.split(".")[0] in ("data", "engine", "models", "tools"))
"""


@pytest.fixture
def program(tmp_path, run_process):
    """Return `program(*parts)`, which runs a script next to other folders `models` and `data`; it returns its JSON."""
    for file in ("models/__init__.py", "models/resnet.py", "data.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("WHOSE = 'own'\n")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/someone_resnet-dcn_main").symlink_to(ROOT)
    torch.save(IMAGE, tmp_path / "image.pt")

    def run(*parts: str) -> dict:
        (tmp_path / "program.py").write_text("".join([START, *parts, "\nprint(json.dumps(out))\n"]))
        result = run_process("program.py", cwd=tmp_path)
        assert result.code == 0, result.err
        return json.loads(result.out.splitlines()[-1])

    return run


def as_lists(detections: list[dict]) -> list[dict]:
    return [{name: tensor.tolist() for name, tensor in found.items()} for found in detections]


@pytest.mark.parametrize("imported", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_entry_points_next_to_other_folders(program, dcn_run, tmp_path, imported):
    weights = tmp_path / "weights.pt"
    torch.save(resnet("resnet18").state_dict(), weights)
    (tmp_path / "options.json").write_text(json.dumps([BACKBONE, OPTIONS, str(dcn_run), str(weights)]))
    mark = "import data, models, models.resnet\ndata.WHOSE = models.WHOSE = models.resnet.WHOSE = 'still own'\n"
    out = program(mark if imported == "before" else "", USE, OWN)

    assert out["entries"] == sorted(["resnet", "detector", *DETECTORS, *(f"{name}_dcn" for name in RESNETS)])
    assert "Build faster_rcnn on a ResNet and a feature pyramid" in out["help"]
    assert faster_rcnn.__doc__ in out["help"]
    assert out["own"] == ["still own" if imported == "before" else "own"] * 3
    assert out["short names"] == ["data", "models", "models.resnet"]
    tops = {name.partition(".")[0] for name in out["modules"]}
    assert tops == {"dcn", "resnet_dcn", "torch", "torchvision"}, "classes can be imported from their module"
    with torch.inference_mode():
        torch.manual_seed(0)
        network = resnet("resnet18", dcn_v2_stages=[2, 3, 4])
        load_backbone_weights(network, "resnet18", str(weights))
        assert out["resnet"] == network.eval()(IMAGE[None]).tolist()
        torch.manual_seed(0)
        model = assemble("faster_rcnn", resnet(**BACKBONE), fpn={"out_channels": 16}, **OPTIONS).eval()
        assert sum(isinstance(module, DeformConv2d) for module in model.modules()) == 2
        assert out["faster_rcnn"] == as_lists(model([IMAGE]))
        trained = load_trained(dcn_run)
        assert out["detector"] == as_lists(restore_model(trained)([IMAGE]))
        assert len(out["detector"][0]["boxes"]) > 0
        assert out["class_names"] == trained.state["class_names"]


@pytest.mark.slow
def test_errors_of_entry_points(program, tmp_path):
    """Another operator or another copy of the networks in the same process; missing packages; a missing run."""
    (tmp_path / "dcn.py").touch()
    (tmp_path / "resnet_dcn/models").mkdir(parents=True)
    (tmp_path / "resnet_dcn/models/__init__.py").touch()
    out = program(
        """
out = []

def load(*arguments, **options):
    try:
        torch.hub.load(REPO, *arguments, **options, **HUB)
        out.append("loaded")
    except Exception as error:
        out.append(f"{type(error).__name__}: {error}")

import dcn
load("resnet18_dcn")
del sys.modules["dcn"]
import resnet_dcn.models
load("resnet18_dcn")
del sys.modules["resnet_dcn"], sys.modules["resnet_dcn.models"]
load("resnet18_dcn")
load("detector", "runs/none")
load("resnet18_dcn", dcn_stages=[3])
load("fcos", 3, backbone={"name": "resnet18", "dcn_v2_stage": [3]})
load("fcos", 3, backbone="resnet18")
load("fcos", 3, fpn={"chanels": 64})
load("fcos", 3, xyz=1)
load("fcos", 3, backbone={"name": "resnet18"}, fpn={"channels": 64}, dcn_convs=1)
load("fcos", 3, dcn_convs=1, num_dcn_convs=2)
"""
    )
    assert out[0] == (
        f"ImportError: torch.hub loads dcn from {ROOT}, but this program has already imported it from {tmp_path}; use "
        "only one of them, or load the other in a separate process"
    )
    assert (
        f"loads resnet_dcn.models from {ROOT}, but this program has already imported it from {tmp_path}/resnet_dcn"
        in out[1]
    )
    assert out[2] == "loaded"
    assert out[3].startswith("CheckpointError: checkpoint runs/none does not exist")
    stages = ", did you mean 'dcn_v2_stages'? known: "
    assert out[4].startswith(f"ValueError: unknown option 'dcn_stages' of resnet{stages}weights, dcn_v2_stages, ")
    assert out[5].startswith(f"ValueError: unknown option 'dcn_v2_stage' of `backbone`{stages}name, weights, dcn_v2_")
    assert out[6] == "ValueError: options of `backbone` must be a dict, got 'resnet18'"
    assert out[7].startswith(
        "ValueError: unknown option 'chanels' of `fpn`, did you mean 'out_channels'? known: levels, "
    )
    assert out[8].startswith(
        "ValueError: unknown option 'xyz' of fcos; known: min_size, max_size, channels, mean, std, "
    )
    assert out[9] == "loaded"  # by old names
    both = "model.fcos.dcn_convs and model.fcos.num_dcn_convs are the same option: set only model.fcos.num_dcn_convs"
    assert out[10] == f"ValueError: {both}"
