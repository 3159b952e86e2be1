"""Commands on the pages and in the README: all parse and their overrides load; those that take seconds are run."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.synthetic import write_shapes
from data.video import video_writer
from engine.config.files import CONFIG_DIR
from engine.config.loading import load_config
from tests.pages import PAGES, ROOT, Command, blocks, commands, text_of

TOOLS = ROOT / "tools"
# configs of the pages that are not in configs/, and one there that is like them
STAND_INS = {
    "mine.yaml": "custom.yaml",
    "own.yaml": "r50_dcn.yaml",
    "mdconv.yaml": "r50_dcn.yaml",
    "my.yaml": "demo_dcn.yaml",
    "few.yaml": "demo.yaml",
    "fields.yaml": "custom.yaml",
}
# what a command has, and why the tests do not run it
NOT_RUN = {
    r"^(make|pip|cp) ": "installs, or runs other commands of the pages",
    r"python -m (pytest|coverage)|tests/language": "runs the tests",
    r"(^|[/ ])(r50|r101|mask_rcnn|cascade|retinanet|fcos)\w*\.yaml|coco|val2017": "needs COCO, and a GPU for days",
    r"--device[= ]cuda|--nproc-per-node=8|train\.py .*cards": "needs GPUs, or hours",
    r"runs/study|study\.py *$": "needs the 21 runs of the study, hours",
    r"train\.py --config demo\w*\.yaml(?!.*train\.max_steps)": "trains for minutes; make demo runs it",
    r"(--config|--augment) (cards|custom)\.yaml": "needs a data set that is not drawn",
    r"datasets/(photos|mine)|import_dataset\.py photos": "needs labels; test_the_page_of_fifteen_minutes",
    r"few\.yaml|runs/(light_|fields|tiles)|fields\.yaml|aerial\.tif|voc_cards": "needs images that are not drawn",
    r"other(_figures)?\.json|class_weights": "needs a second val split, or classes of other data",
    r"make_docs": "writes into the clone; test_make_docs.py runs it",
    r"mdconv|model_final|SOURCE|\bOUT\b|\bown\.": "needs a file of another framework, or is a pattern",
    r"--fiftyone": "opens an app",
    r"benchmark\.py": "measures for minutes, on an idle machine",
    r"runs/(plain|dcn)_seed|shapes_masks|runs/b\b": "needs runs with several seeds, or of masks",
}
# a command, and the folder of the workspace that it makes
MAKES = {"train.py --config mine.yaml": "runs/mine", "make_shapes.py": "datasets/shapes"}
CASES = [command for page in PAGES for command in commands(page) if command.tool]
IDS = [f"{case.page}:{case.tool}:{index}" for index, case in enumerate(CASES)]


def reason_not_to_run(command: Command) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command.text)), None)


def runnable(page: str) -> list[Command]:
    """Return the commands of a page that take seconds, each once, without transcripts that show an output."""
    found = [c for c in commands(page) if c.tool and c.output is None and reason_not_to_run(c) is None]
    return list({command.text: command for command in found}.values())


@pytest.fixture(scope="module")
def parse():
    """`parse(tool, arguments, capsys)` runs the parser of a tool; a `ValueError` has the message that it prints."""
    namespaces = {}

    def ask(tool: str, arguments: list[str], capsys: pytest.CaptureFixture):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{tool}.py", *arguments])
            patch.syspath_prepend(str(TOOLS))
            if tool not in namespaces:
                namespaces[tool] = runpy.run_path(str(TOOLS / f"{tool}.py"), run_name=tool)
            if "parse_arguments" not in namespaces[tool]:
                assert not arguments, f"tools/{tool}.py has no options"
                return None
            try:
                return namespaces[tool]["parse_arguments"]()
            except SystemExit:
                raise ValueError(capsys.readouterr().err) from None

    return ask


def config_of(command: Command, arguments) -> str:
    """Return the config that the overrides of a command are for, or one like it."""
    named = getattr(arguments, "config", None)
    if not named:
        return "study.yaml" if command.tool == "study" else "demo_dcn.yaml"
    name = STAND_INS.get(str(named), str(named))
    if re.match(r"(runs|weights|datasets)/", name):
        return "demo_dcn.yaml"
    assert (CONFIG_DIR / name).is_file(), f"{command.page}: config {named} does not exist"
    return name


@pytest.mark.parametrize("command", CASES, ids=IDS)
def test_a_command_parses_and_its_overrides_load(command, parse, capsys):
    """Without an error or a warning that the page does not show."""
    if "..." in command.arguments:
        pytest.skip("a pattern")
    problem = ""
    try:
        arguments = parse(command.tool, command.arguments, capsys)
        if arguments is not None:
            load_config(config_of(command, arguments), getattr(arguments, "overrides", None) or [])
    except ValueError as error:
        problem = str(error).replace(f"{CONFIG_DIR.parent}/", "")
    shown = " ".join((command.output or "").split())
    for line in f"{problem}\n{capsys.readouterr().err}".strip().splitlines()[-1:]:
        assert " ".join(line.split()) in shown, f"{command.page}: {command.text}\n{problem}"


def test_the_page_has_every_renamed_option():
    """docs/reference/command-line.md against the table that the tools translate by."""
    renamed = runpy.run_path(str(TOOLS / "_arguments.py"))["RENAMED"]
    expected = {(tool, old, new) for tool, names in renamed.items() for old, new in names.items()}
    rows = re.findall(
        r"^\| (`\w+\.py.*?) \| (`--.*?) \| (`--.*?) \|$", text_of("docs/reference/command-line.md"), re.MULTILINE
    )
    shown = {
        (tool.replace(".py", ""), old, new)
        for tools, olds, news in rows
        for tool in re.findall(r"`(.*?)`", tools)
        for old, new in zip(re.findall(r"`(.*?)`", olds), re.findall(r"`(.*?)`", news), strict=True)
    }
    assert shown == expected


def test_commands_are_found(tmp_path):
    assert len(CASES) > 60
    assert {case.tool for case in CASES} == {file.stem for file in TOOLS.glob("[!_]*.py")}
    (tmp_path / "page.md").write_text(
        "```\n$ python tools/a.py x \\\n    y=1  # so\nerror: z\n```\n"
        "```python\npython tools/b.py\n```\n"
        '```\ncp a b\nA=1 python tools/c.py "{u: 1,\n  v: 2}" && torchrun -n 2 tools/d.py w\n```\n',
        encoding="utf-8",
    )
    found = commands(str(tmp_path / "page.md"))
    assert [(command.tool, command.arguments, command.output) for command in found] == [
        ("a", ["x", "y=1"], "error: z"),
        (None, [], None),
        ("c", ["{u: 1,\n  v: 2}"], None),
        ("d", ["w"], None),
    ]


@pytest.fixture(scope="module")
def workspace(make_once, tiny_config, shapes, run_process) -> Path:
    """A folder as the root of a clone, with small data and runs under the names that the pages use."""

    def make(folder: Path) -> None:
        for name in ("tools", "requirements.txt"):
            (folder / name).symlink_to(ROOT / name)
        write_shapes(folder / "datasets/shapes", train=12, val=60, width=96, height=80, deformation=1.0)
        text = tiny_config.read_text(encoding="utf-8").replace(str(shapes), "datasets/shapes")
        text = text.replace("epochs: 2", "epochs: 1").replace("norm: gn}", "norm: gn, dcn_v2_stages: [1, 2]}")
        (folder / "mine.yaml").write_text(text, encoding="utf-8")
        for name, stages in (("demo", "[]"), ("demo_dcn", "[1,2]")):
            options = ["--run-dir", f"runs/{name}", f"model.backbone.dcn_v2_stages={stages}"]
            done = run_process(TOOLS / "train.py", "--config", "mine.yaml", *options, cwd=folder)
            assert done.code == 0, done.err
        shutil.copytree(folder / "runs/demo", folder / "runs/mine_plain")
        for copy in ("mine", "cards", "cards_dcn", "r50_dcn"):
            shutil.copytree(folder / "runs/demo_dcn", folder / "runs" / copy)
        photos = sorted((folder / "datasets/shapes/val").iterdir())[:3]
        (folder / "photos").mkdir()
        for index, photo in enumerate(photos):
            with Image.open(photo) as image:
                image.resize((192, 160)).save(folder / f"photos/IMG_270{index}.jpg")
        shutil.copy(folder / "photos/IMG_2700.jpg", folder / "photo.jpg")
        with video_writer(folder / "clip.mp4", Fraction(10), "test") as write:
            for index in range(4):
                write(torch.full((3, 64, 96), 40 * index, dtype=torch.uint8), Fraction(index, 10))
        for program, call in (("python", ""), ("torchrun", "-m torch.distributed.run ")):
            file = folder / "bin" / program
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call}"$@"\n', encoding="utf-8")
            file.chmod(0o755)

    return make_once("workspace", make)


def run(text: str, folder: Path) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["PATH"] = f"{folder}/bin:{env['PATH']}"
    return subprocess.run(["bash", "-c", text], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_commands_of_a_page_run(page, workspace, tmp_path):
    """One after the other, as they are, in a copy of the workspace."""
    folder = shutil.copytree(workspace, tmp_path / "clone", symlinks=True)
    for text, made in MAKES.items():
        if any(text in command.text for command in runnable(page)):
            shutil.rmtree(folder / made)
    for command in runnable(page):
        done = run(command.text, folder)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_each_tool_is_run_or_has_a_reason():
    """`NOT_RUN` matches nothing in vain, and each tool of a user's first day is run."""
    assert all(any(re.search(pattern, case.text) for page in PAGES for case in commands(page)) for pattern in NOT_RUN)
    run_tools = {case.tool for page in PAGES for case in runnable(page)}
    assert {"train", "eval", "predict", "visualize", "compare", "check_dataset", "make_shapes", "export"} <= run_tools


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/reference/predictor.md", "docs/reference/file-formats.md"])
def test_the_python_of_a_page_runs(page, workspace, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "clone", symlinks=True)
    (folder / "page.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = run(f"PYTHONPATH={ROOT} python page.py", folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_page_of_fifteen_minutes(workspace, tmp_path):
    """All commands in order, from labels to detections, with fewer images and steps."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("tools", "bin"):
        (folder / name).symlink_to(workspace / name)
    shorter = {"make_shapes": " --train-images 16 --val-images 6", "train": " train.max_steps=2"}
    found = commands("docs/getting-started/fifteen-minutes.md")
    page = [command for command in found if command.tool]
    assert [command.tool for command in page][::2] == ["make_shapes", "check_dataset", "train", "errors"]
    for command in page:
        done = run(command.text + shorter.get(command.tool, ""), folder)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}\n{done.stderr}"
    assert {file.name for file in (folder / "runs/mine").iterdir()} >= {"thresholds.html", "errors.html"}
    assert len([*(folder / "found").iterdir()]) == 6
