"""tools/_arguments.py: old spellings, config values, checked numbers."""

import argparse
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arguments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import _arguments

        yield _arguments


def help_of(run_tool, tool):
    name, *command = tool.split()
    result = run_tool(name, *command, "--help")
    assert result.code == 0
    return result.out


def test_new_spellings_are_options_and_old_ones_are_not(run_tool, arguments):
    for tool, names in arguments.RENAMED.items():
        options = {*re.findall(r"(?<![\w-])--[\w-]+", help_of(run_tool, tool))}
        assert {*names.values()} <= options, tool
        assert not {*names} & options, tool


def test_old_spellings_are_replaced_with_a_warning(arguments, monkeypatch, capsys):
    for tool, names in arguments.RENAMED.items():
        command = tool.split()[1:]
        for old, new in names.items():
            monkeypatch.setattr(sys, "argv", ["x", *command, old, "1", f"{old}=2", "--other", f"a{old}"])
            given = arguments.current_spellings(tool.split()[0])
            assert given == [*command, new, "1", f"{new}=2", "--other", f"a{old}"]
            warning = f"warning: {old} is deprecated and will be removed in 0.3.0: use {new}\n"
            assert capsys.readouterr().err == 2 * warning


def test_an_old_spelling_does_the_same(run_tool, tmp_path):
    sizes = ["--width", 96, "--height", 80]
    old = run_tool("make_shapes", "--out", tmp_path / "old", "--train", 2, "--val=1", *sizes)
    new = run_tool("make_shapes", "-o", tmp_path / "new", "--train-images", 2, "--val-images=1", *sizes)
    assert (old.code, new.code, new.err) == (0, 0, "")
    assert [line.split()[1] for line in old.err.splitlines()] == ["--train", "--val"]
    folders = tmp_path / "old", tmp_path / "new"
    read = [{file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")} for folder in folders]
    assert len(read[0]) == 5
    assert read[0] == read[1]


def test_options_cannot_be_abbreviated(run_tool, tmp_path):
    code, _, err = run_tool("make_shapes", "--wid", 64, "--out", tmp_path / "new")
    assert code == 2
    assert "unrecognized arguments: --wid" in err


@pytest.mark.parametrize(
    ("argument", "is_override"),
    [
        ("train.epochs=1", True),
        ("device=cpu", True),
        ("unknown.key=", True),
        ("model.backbone.dcn_v2_stages=[3,4]", True),
        ("a=b.jpg", True),
        ("./a=b.jpg", False),
        ("/photos/a=b.jpg", False),
        ("photos/a=b.jpg", False),
        ("my photo=1.jpg", False),
        ("a-b=1.jpg", False),
        ("1=2.jpg", False),
        (".a=b", False),
        ("a.=b", False),
        ("a.jpg", False),
        ("=x", False),
    ],
)
def test_config_values_are_known_by_their_form(arguments, argument, is_override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert arguments.is_override(argument) == is_override
        (tmp_path / "a=b.jpg").touch()
        (tmp_path / "device=cpu").mkdir(exist_ok=True)


@given(st.sampled_from(["seed", "train.lr", "data.workers", "test.flip", "train.lr_factors.layer4.0"]), st.text())
def test_every_key_of_the_config_starts_a_config_value(arguments, key, value):
    override = f"{key}={value}"
    assert arguments.split_overrides(["x.jpg", override, f"./{override}"]) == (["x.jpg", f"./{override}"], [override])


@pytest.mark.parametrize("argument", ["frame=2.png", "lr=1", "epoch=3-step=9.pt", "train.epoch=1", "a.b.c="])
def test_another_name_is_a_file_or_folder_that_must_exist(arguments, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^'{argument}' does not exist, and [a-z.]+ is not a key of a config"):
        arguments.split_overrides(["x.jpg", argument])
    (tmp_path / argument).mkdir()
    assert arguments.split_overrides([argument, "seed=1"]) == ([argument], ["seed=1"])


def test_a_misspelt_key_gets_a_guess(arguments):
    with pytest.raises(ValueError, match=r"train\.epoch is not a key of a config, did you mean 'train\.epochs'"):
        arguments.split_overrides(["train.epoch=1"])


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        ("positive", "3", 3),
        ("positive", "0", None),
        ("positive", "-1", None),
        ("positive", "1.5", None),
        ("positive", "", None),
        ("not_negative", "0", 0),
        ("not_negative", "-1", None),
        ("fraction", "0.5", 0.5),
        ("fraction", "1", 1.0),
        ("fraction", "1.01", None),
        ("fraction", "nan", None),
        ("fraction", "x", None),
    ],
)
def test_numbers(arguments, read, text, value):
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^must be an? .*, got {re.escape(repr(text))}$"):
            getattr(arguments, read)(text)
    else:
        assert getattr(arguments, read)(text) == value


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "eval --results a.json --annotations b.json no.such.key=1",
            "'no.such.key=1' does not exist, and no.such.key is not a key of a config",
        ),
        (
            "eval --results a.json --annotations b.json data.augment.horizontal_flip=0",
            "data.augment.horizontal_flip=0 has no effect: --results evaluates",
        ),
        ("eval --results a.json --annotations b.json --detections c.json", "--detections has no effect: --results"),
        ("eval --results a.json --annotations b.json --device cpu", "--device has no effect: --results evaluates"),
        ("eval --results a.json --annotations b.json --batch-size 2", "--batch-size has no effect: --results"),
        ("eval --results a.json --annotations b.json --weights ema", "--weights has no effect: --results evaluates"),
        ("eval runs/a --ignore-unmasked", "--ignore-unmasked has no effect: it needs --results"),
        ("eval runs/a --device cpu device=cuda", "--device and device=cuda set the same value"),
        ("eval runs/a --batch-size 2 train.batch_size=3", "--batch-size and train.batch_size=3 set the same value"),
        (
            "eval runs/a --max-detections 200 eval.max_detections=300",
            "--max-detections and eval.max_detections=300",
        ),
        ("predict runs/a b.jpg --device cpu device=cpu", "--device and device=cpu set the same value"),
        ("predict runs/a b.jpg --annotations c.json", "--annotations has no effect: it needs --json"),
        ("compare runs/a --num-images 6", "--num-images has no effect: it needs --html"),
        ("visualize runs/a --num-images 4 --images 1", "--num-images has no effect: --images names the images"),
        ("visualize runs/a --pixel 3,3 --max-detections 3", "--max-detections has no effect: --pixel sets"),
        ("visualize runs/a --device cpu device=cpu", "--device and device=cpu set the same value"),
        ("train --config demo --device cpu device=cpu", "--device and device=cpu set the same value"),
        ("export runs/a a.pt2 --opset 18", "--opset has no effect: it needs an .onnx file"),
        ("convert a.pth b.pth --classes c.json", "--classes has no effect: a detector needs --config"),
        (
            "convert a.pth b.pth data.augment.horizontal_flip=0",
            "data.augment.horizontal_flip=0 has no effect: a detector needs --config",
        ),
        ("convert a.pth b.pth --config demo --mask-scale 2", "--mask-scale has no effect: with --config, write"),
        (
            "check_dataset --images a --annotations b.json data.augment.horizontal_flip=0",
            "data.augment.horizontal_flip=0 has no effect: it needs --config",
        ),
        (
            "check_dataset --config demo --contact-sheet= --num-images 12",
            "--num-images has no effect: it needs",
        ),
        ("study seed=3", "seed must not be given: the study sets it for each run"),
        ("study data.val={images: a}", "data.val must not be given: the study sets it for each run"),
        ("study model.backbone.dcn_v2_stages=[2]", "model.backbone.dcn_v2_stages must not be given"),
        ("study --networks plain --bootstrap-samples 1000", "--bootstrap-samples has no effect: it needs two networks"),
    ],
)
def test_what_a_command_does_not_use_is_an_error(run_tool, command, said, tmp_path):
    """Also if the value is the default."""
    tool, *arguments = re.findall(r"[\w.]+=\{.*\}|\S+", command)
    code, out, err = run_tool(tool, *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert not [*tmp_path.iterdir()]


def test_what_is_given_twice_causes_a_warning(arguments, capsys):
    parser = arguments.make_parser("", "")
    parser.add_argument("-o", "--out")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--name", default="a")
    parser.add_argument("overrides", nargs="*", default=[])
    texts = ["--out=a", "x.y=1", "-o", "b", "--fast", "x.y=2", "x.z=3", "m={a: 1}", "m={b: 2}"]
    args = parser.parse_intermixed_args(texts)
    assert (args.out, args.fast, args.name) == ("b", True, "a")
    assert args.overrides == ["x.y=1", "x.y=2", "x.z=3", "m={a: 1}", "m={b: 2}"]
    assert args.given == {"--out", "--fast"}
    assert capsys.readouterr().err.splitlines() == [
        "warning: --out is given twice; the last value counts",
        "warning: x.y is given twice; the last value counts",
    ]
    arguments.refuse_unused(args, "", "--name")
    with pytest.raises(ValueError, match="--out and --fast have no effect: it is dark"):
        arguments.refuse_unused(args, "it is dark", "--name", "--out", "--fast")
    assert not hasattr(parser.parse_intermixed_args([]), "given")


def test_every_tool_of_runs_reads_keys_that_exist(arguments):
    from engine.config.options import RunConfig
    from engine.config.sections import keys_of

    keys = {key for key, _ in keys_of(RunConfig)}
    named = {key for read in arguments._READ.values() for key in read} | {*arguments._TRAINING}
    assert named <= keys
    assert not arguments.is_read("eval", "train.lr")
    assert not arguments.is_read("predict", "data.val.images")
    assert not arguments.is_read("compare", "tta.flip")
    assert not arguments.is_read("visualize", "model.weights")
    assert not arguments.is_read("eval", "train.amp_other")
    assert arguments.is_read("eval", "data.val")
    assert arguments.is_read("eval", "data.val.images")
    assert arguments.is_read("check_dataset", "model.detector")


@pytest.mark.parametrize("argument", ["--out=~/a b", "--json=~/a b"])
def test_paths_of_options_are_expanded(arguments, argument, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = arguments.make_parser("", "")
    arguments.add_out(parser, Path("here"))
    arguments.add_json(parser, "all")
    args = parser.parse_args([argument])
    assert tmp_path / "a b" in (args.out, args.json)
    assert arguments.split_overrides(["~/a=b", "model.weights=~/c"]) == ([f"{tmp_path}/a=b"], ["model.weights=~/c"])


@pytest.mark.parametrize("tool", ["predict", "eval"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "31"], "must be an integer of at least 32, got '31'"),
        (["--tile", "64", "--overlap", "0.95"], "must be a number from 0 to 0.9, got '0.95'"),
        (["--overlap", "0.3"], "--overlap has no effect: it needs --tile"),
        (["--tile", "64", "tile.size=80"], "--tile and tile.size=80 set the same value"),
    ],
)
def test_tiles_out_of_range(run_tool, dcn_run, shapes, tool, options, message):
    inputs = [shapes / "val"] if tool == "predict" else []
    code, out, err = run_tool(tool, dcn_run, *inputs, *options)
    assert (code, out) == (2, "")
    assert message in err
