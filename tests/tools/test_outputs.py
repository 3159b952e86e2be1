"""tools/_outputs.py: outputs of one call that are one file, or an input, under any name."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outputs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import _outputs

        yield _outputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory with a file under several names."""
    (tmp_path / "a.json").write_text("precious")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to("a.json")
    os.link(tmp_path / "a.json", tmp_path / "hard.json")
    (tmp_path / "folder_link").symlink_to("sub")
    (tmp_path / "dangling.json").symlink_to("sub/new.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SAME = [
    ("a.json", "a.json"),
    ("a.json", "./sub/../a.json"),
    ("a.json", "{folder}/a.json"),
    ("a.json", "link.json"),
    ("a.json", "hard.json"),
    ("new.json", "sub/../new.json"),
    ("sub/new.json", "folder_link/new.json"),
    ("sub/new.json", "dangling.json"),
    ("made/new.json", "{folder}/made/new.json"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_names_of_one_file(outputs, folder, one, other):
    first, second = Path(one), Path(other.format(folder=folder))
    with pytest.raises(ValueError, match=r"^--html and --json must be different files, got .* and "):
        outputs.check_outputs({"--json": first, "--html": second})
    with pytest.raises(ValueError, match=r"^--json .* must not overwrite --annotations "):
        outputs.check_outputs({"--json": second}, {"--annotations": first})
    assert (folder / "a.json").read_text() == "precious"


def test_different_files_and_missing_ones_are_allowed(outputs, folder):
    outputs.check_outputs(
        {"--json": Path("a.json"), "--html": Path("sub/a.json"), "OUT": None}, {"RUN": Path("b.json"), "--x": None}
    )
    outputs.check_outputs({"--json": Path("new.json"), "--html": Path("new/new.json")})
    outputs.check_outputs({"--json": Path(os.devnull), "--html": Path(os.devnull)})
    assert not (folder / "new").exists()


def test_other_cases_are_one_file_where_the_system_ignores_case(outputs, folder, monkeypatch):
    files = {"--json": Path("New.json"), "--html": Path("new.JSON")}
    if not outputs._ignores_case(folder):
        outputs.check_outputs(files)
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: True)
    with pytest.raises(ValueError, match="must be different files"):
        outputs.check_outputs(files)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("sub", "must be a file, got the folder sub"),
        ("a.json/b.json", r"must be in a writable folder, got .*a\.json"),
        ("a.json/b/c.json", r"must be in a writable folder, got .*a\.json"),
        ("dangling.json/c.json", r"must be in a writable folder, got .*dangling\.json"),
        ("x" * 300, "cannot be written: File name too long"),
        ("a\0b", "cannot be written: .*null"),
    ],
)
def test_a_place_that_cannot_be_written(outputs, folder, path, reason):
    with pytest.raises(ValueError, match=f"^--json .*{reason}"):
        outputs.check_outputs({"--json": Path(path)})


def test_the_files_of_a_run_are_kept(outputs, folder):
    for name in ("last.pt", "best.pt", "step_00000003.pt", "config.yaml", "metrics.jsonl", "figures.json"):
        (folder / "sub" / name).touch()
    for run in ("sub", "sub/last.pt", "sub/best.pt"):
        kept = outputs.run_files(Path(run))
        assert {path.name for path in kept.values()} == {
            "last.pt",
            "best.pt",
            "step_00000003.pt",
            "config.yaml",
            "metrics.jsonl",
        }
    with pytest.raises(ValueError, match=r"--json sub/best\.pt must not overwrite the file of the run best\.pt"):
        outputs.check_outputs({"--json": Path("sub/best.pt")}, outputs.run_files(Path("sub")))


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("convert", "a.json o.pt --json o.pt", "--json and OUT must be different files"),
        ("convert", "a.json o.pt --json a.json", "--json a.json must not overwrite SOURCE"),
        ("convert", "a.json o.pt --config x.yaml --json o.yaml", "--json and the config of OUT must be different"),
        ("eval", "--results a.json --annotations b.json --json a.json", "--json a.json must not overwrite --results"),
        ("eval", "--results b.json --annotations a.json --json link.json", "must not overwrite --annotations"),
        ("eval", "sub --json d.json --detections ./d.json", "--detections and --json must be different files"),
        ("eval", "sub --json sub/last.detections.json", "--detections and --json must be different files"),
        ("eval", "sub --json sub/best.pt", "must not overwrite the file of the run best.pt"),
        ("compare", "sub --json c.html --html c.html", "--json and --html must be different files"),
        ("compare", "sub --json sub/metrics.jsonl", "must not overwrite the file of the run metrics.jsonl"),
        ("export", "sub sub/last.onnx --check sub/last.onnx", "must not overwrite --check"),
        (
            "check_dataset",
            "--images sub --annotations a.json --contact-sheet= --json a.json",
            "the annotations of data",
        ),
        ("check_dataset", "--images sub --annotations b --contact-sheet c.png --json c.png", "must be different files"),
        ("benchmark", "train --config c.yaml --json c.yaml", "--json c.yaml must not overwrite --config"),
        ("study", "--out s --data ./s", "--out and --data must be different folders"),
    ],
)
def test_every_tool_checks_its_outputs_before_its_work(run_tool, folder, tool, arguments, message):
    for name in ("last.pt", "best.pt", "metrics.jsonl"):
        (folder / "sub" / name).write_text("precious")
    before = sorted(path.name for path in folder.rglob("*"))
    code, _, err = run_tool(tool, *arguments.split(), cwd=folder)
    assert code == 2
    assert message in err
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert (folder / "a.json").read_text() == "precious"
