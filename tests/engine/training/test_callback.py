"""A function of the user that receives the records of a run."""

import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engine.building.start import train
from engine.training.callback import Callback, load_callback

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory; modules that a test imports are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_function_is_found_in_the_working_directory(folder):
    (folder / "tools_of_mine").mkdir()
    (folder / "tools_of_mine/charts.py").write_text(
        "from tools_of_mine.names import NAME\ndef log(record): record[NAME]"
    )
    (folder / "tools_of_mine/names.py").write_text("NAME = 'step'")
    assert load_callback("tools_of_mine.charts:log").__code__.co_filename.endswith("charts.py")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "absent_one:log",
            None,
            "module 'absent_one' was not found in the working directory .* or in",
        ),
        (
            "mine_a:log",
            "import absent_two",
            "the import of mine_a failed: ModuleNotFoundError: No module named 'absent_t",
        ),
        ("mine_b:log", "1 / 0", "the import of mine_b failed: ZeroDivisionError: division by zero"),
        ("mine_c:lgo", "def log(record): ...", r"mine_c\.py has no function 'lgo'; its functions: \['log'\]"),
        ("mine_d:log", "log = 3\n", r"mine_d\.py has no function 'log'; its functions: \[\]"),
        ("mine_e:log", "def log(): ...", "the function must take one argument, the record: too many positional"),
    ],
)
def test_a_callback_that_cannot_be_used_is_an_error(folder, name, content, message):
    if content is not None:
        (folder / f"{name.partition(':')[0]}.py").write_text(content)
    with pytest.raises(ValueError, match=f"^train.callback {name}: .*{message}"):
        load_callback(name)


def test_the_first_failure_is_a_warning(caplog):
    calls = []

    def fail(record):
        calls.append(record)
        raise ConnectionError("no network")

    callback = Callback(fail)
    callback("start", 0, {"config": {"seed": 3}})
    callback("step", 5, {"train/loss": 0.5, "lr/head": math.nan})
    assert calls == [
        {"event": "start", "step": 0, "config": {"seed": 3}},
        {"event": "step", "step": 5, "train/loss": 0.5},
    ]
    (warning,) = caplog.messages
    assert warning.startswith("train.callback failed in event 'start' of step 0: ConnectionError: no network (")
    assert "test_callback.py, line " in warning
    Callback()("step", 1, {})


class Recorder(ModuleType):
    """Stands in for a logging library: any function of it is recorded."""

    def __init__(self, name, calls):
        super().__init__(name)
        self._calls = calls

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def record(*args, **kwargs):
            self._calls.append((name, args, kwargs))
            return SimpleNamespace(**{key: getattr(self, f"run_{key}") for key in ("log", "finish")})

        return record


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_the_examples_of_the_page_in_a_run(library, folder, tiny_config, monkeypatch):
    page = (ROOT / "docs/guides/loggers.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf'^```python title="{library}_log.py"\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 16
    (folder / f"{library}_log.py").write_text(code)
    calls = []
    monkeypatch.setitem(sys.modules, library, Recorder(library, calls))
    options = ["train.epochs=1", "train.max_steps=2", "train.log_every_steps=1", f"train.callback={library}_log:log"]
    result = train(str(tiny_config), options, run_dir="run")
    names = [name for name, _, _ in calls]
    if library == "wandb":
        assert names == ["init", "run_log", "run_log", "run_log", "run_finish"]
        assert calls[0][2]["config"]["train"]["max_steps"] == 2
        assert calls[0][2]["id"] == "run"
        assert calls[-1][2] == {"exit_code": 0}
    else:
        expected = ["set_experiment", "start_run", "log_dict", *["log_metrics"] * 3, "end_run"]
        assert names == expected
        assert calls[-1][1] == ("FINISHED",)
    records = [(args[0], kwargs["step"]) for name, args, kwargs in calls if name in ("run_log", "log_metrics")]
    assert [step for _, step in records] == [1, 2, 2]
    assert all("train/loss" in record for record, _ in records[:2])
    assert records[2][0]["val/AP"] == result.metrics["AP"]
