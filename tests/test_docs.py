"""README and docs/: links and anchors exist, YAML loads, Python compiles, the site builds. Commands: tests/tools."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import typing
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from engine.building.model import build_model
from engine.config.loading import load_config
from engine.config.options import RunConfig
from models import replaced_convs
from tests import pages
from tests.pages import PAGES, ROOT, blocks, text_of

CONFIG_KEYS = {"base", *RunConfig.model_fields}
# packages that pages use and no requirements file has
OPTIONAL = {"albumentations"}
OLD_KEYS = {"docs/reference/renamed.md", "CHANGELOG.md"}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(text_of(page)), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def broken_links(page: str) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (pages.ROOT / page).parent / path if path else pages.ROOT / page
        name = target.resolve().relative_to(pages.ROOT).as_posix()
        if not target.exists():
            broken.append(f"{link}: {name} does not exist")
        elif anchor and anchor not in anchors(name):
            broken.append(f"{link}: {name} lacks this heading")
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/reference/config.md"} <= {*PAGES}
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "# A `b`: c?\n[1](a.md#a-b-c) [2](#a-b-c) [3](x.md) [4](#d)\n```\n[5](y.md)\n# d\n```\n"
    )
    assert broken_links("a.md") == ["x.md: x.md does not exist", "#d: a.md lacks this heading"]


@pytest.mark.parametrize("page", PAGES)
def test_tools_and_config_keys_exist(page):
    """Those named anywhere on the page; docs/reference/renamed.md has the old keys."""
    tools = set(re.findall(r"(?<!tests/)\btools/(\w+)\.py", text_of(page)))
    assert not {name for name in tools if not (ROOT / f"tools/{name}.py").is_file()}
    if page not in OLD_KEYS:
        keys = set(re.findall(r"`((?:data|model|train|tta)(?:\.(?!py|log|yaml)[a-z]\w*)+)(?=[`=: ])", text_of(page)))
        assert not {key for key in keys - {"model.backbone.body"} if not key_exists(key)}


@pytest.mark.parametrize("page", PAGES)
def test_yaml_loads(page, tmp_path):
    """A block with keys of a config loads, over `r50_dcn.yaml` if it has no `base`."""
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        if isinstance(values, dict) and {*values} <= CONFIG_KEYS:
            file = tmp_path / "page.yaml"
            file.write_text(block if "base" in values else f"base: r50_dcn.yaml\n{block}", encoding="utf-8")
            load_config(file)


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles_and_its_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for name in node.names:
                    if name.name not in OPTIONAL or importlib.util.find_spec(name.name):
                        importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
    for name in re.findall(r"^::: ([\w.]+)$", text_of(page), re.MULTILINE):  # whose docstrings the site shows
        module, _, member = name.rpartition(".")
        assert getattr(importlib.import_module(module), member).__doc__


@pytest.mark.slow
def test_the_site_builds():
    """Strictly: broken links and anchors, and pages that the navigation lacks, are errors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
        env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert Path(folder, "reference/models.html").is_file()


def test_the_file_map_names_every_module():
    sections = dict(re.findall(r"^## (\w+)/\n(.*?)(?=^## )", text_of("docs/development/architecture.md"), re.S | re.M))
    rows = dict(re.findall(r"^\| `(\w+)/` \|(.*)$", sections["engine"], re.MULTILINE))
    assert {*rows} == {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    maps = {folder: sections[folder] for folder in ("dcn", "models", "data")}
    for folder, text in (maps | {f"engine/{name}": row for name, row in rows.items()}).items():
        named = set(re.findall(r"`([*\w]+\.py)`", text))
        files = {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert not {name for name in files if not any(fnmatch(name, pattern) for pattern in named)}, folder
        assert not {pattern for pattern in named if not any(fnmatch(name, pattern) for name in files)}, folder


class TestMigration:
    """The example of docs/guides/coming-from-mmdetection.md against mmdetection's files, and the keys of all three."""

    PAGE = "docs/guides/coming-from-mmdetection.md"
    # configs/_base_/models/faster-rcnn_r50_fpn.py, configs/dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py,
    # configs/_base_/schedules/schedule_1x.py and configs/_base_/datasets/coco_detection.py of mmdetection 3
    STAGE_WITH_DCN = (False, True, True, True)
    SCALES, STRIDES = [8], [4, 8, 16, 32, 64]
    GPUS, SAMPLES_PER_GPU = 8, 2

    @pytest.fixture
    def config(self, tmp_path) -> RunConfig:
        (block,) = (block for block in re.findall(r"^```yaml\n(.*?)^```", text_of(self.PAGE), re.S | re.M))
        (tmp_path / "mdconv.yaml").write_text(block, encoding="utf-8")
        return load_config(tmp_path / "mdconv.yaml")

    def test_the_numbers_are_those_of_mmdetection(self, config):
        backbone, heads, train = config.model.backbone, config.model.faster_rcnn, config.train
        assert backbone.dcn_v2_stages == [i + 1 for i, deformable in enumerate(self.STAGE_WITH_DCN) if deformable]
        assert (backbone.name, backbone.frozen_stages, backbone.modulation) == ("resnet50", 1, True)
        assert (backbone.mask_scale, train.offset_lr_factor, train.clip_grad_norm) == (1.0, 1.0, None)
        assert heads.anchor_sizes == [self.SCALES[0] * stride for stride in self.STRIDES]
        assert (heads.rpn_batch_size_per_image, heads.box_batch_size_per_image, heads.roi_aligned) == (256, 512, True)
        assert (heads.rpn_pre_nms_top_n_train, heads.rpn_post_nms_top_n_train) == (2000, 1000)
        assert (heads.rpn_pre_nms_top_n_test, heads.rpn_post_nms_top_n_test) == (1000, 1000)
        assert (heads.score_threshold, heads.nms_threshold, heads.detections_per_image) == (0.05, 0.5, 100)
        assert train.batch_size == self.SAMPLES_PER_GPU
        assert train.base_batch_size == self.GPUS * self.SAMPLES_PER_GPU
        assert (train.lr, train.momentum, train.weight_decay) == (0.02, 0.9, 0.0001)
        assert (train.epochs, train.milestones, train.gamma) == (12, [8, 11], 0.1)
        assert (train.warmup_steps, train.warmup_factor) == (500, 0.001)
        assert (config.data.min_size, config.data.max_size, config.data.augment.horizontal_flip) == (800, 1333, 0.5)

    def test_it_builds_the_network_of_the_page(self, config):
        offline = config.model.model_copy(
            update={"backbone": config.model.backbone.model_copy(update={"weights": None})}
        )
        model, _ = build_model(offline, config.data, 80)
        assert {row.layer: row.count for row in replaced_convs(model)} == {"layer2": 4, "layer3": 6, "layer4": 3}
        assert "4 + 6 + 3 = 13" in text_of(self.PAGE)

    def test_the_page_names_the_differences_of_r50_dcn(self, config):
        """The page's last list names all but the batch, which both scale to 16 images."""
        ours = load_config("r50_dcn.yaml")
        sections = [
            {name: section.model_dump() for name, section in sections_of(one).items()} for one in (config, ours)
        ]
        differing = {
            key
            for section in sections[0]
            for key in sections[0][section]
            if sections[0][section][key] != sections[1][section][key]
        }
        assert differing == {
            "mask_scale",
            "offset_lr_factor",
            "clip_grad_norm",
            "roi_aligned",
            "rpn_post_nms_top_n_train",
            "batch_size",
        }
        last = text_of(self.PAGE).strip().split("\n\n")[-1]
        assert all(f"`{key}: " in last for key in differing - {"batch_size"})

    @pytest.mark.parametrize("framework", ["mmdetection", "detectron2", "paddledetection"])
    def test_the_keys_in_the_tables_exist(self, framework):
        """The keys of this project are in the last cell of a row."""
        page = f"docs/guides/coming-from-{framework}.md"
        rows = [line for line in text_of(page).splitlines() if line.startswith("|")]
        cells = [row.rstrip(" |").rpartition("|")[2] for row in rows]
        keys = {key for cell in cells for key in re.findall(r"`((?:data|model|train|tta)(?:\.\w+)+)", cell)}
        assert len(keys) > 30
        assert not {key for key in keys if not key_exists(key)}


def sections_of(config: RunConfig) -> dict:
    return {"train": config.train, "backbone": config.model.backbone, "heads": config.model.faster_rcnn}


def key_exists(dotted: str) -> bool:
    section = RunConfig
    for part in dotted.split("."):
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            return False
        kinds = typing.get_args(fields[part].annotation) or (fields[part].annotation,)
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return True
