"""tools/make_docs.py: writes the page and the schema of the config into the clone."""

import re
import shutil

import pytest

from engine.config.files import CONFIG_DIR

ROOT = CONFIG_DIR.parent
FILES = ("docs/reference/config.md", "docs/reference/renamed.md", "configs/schema.json")


@pytest.mark.slow
def test_it_writes_all_files(run_process, tmp_path):
    """In a copy, where they are missing and an option has another default."""
    for folder in ("tools", "engine", "models", "dcn", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "engine/config/options.py"
    config.write_text(re.sub(r"( epochs: .*) = 12\n", r"\1 = 13\n", config.read_text()))
    code, out, err = run_process(tmp_path / "tools/make_docs.py", cwd="/")
    assert (code, err) == (0, "")
    assert out == "".join(f"{file} is up to date\n" for file in FILES)
    row = "| `train.epochs` | integer >= 1, <= 1,000,000 | `{}` |"
    for file, line in (("docs/reference/config.md", row), ("configs/schema.json", '     "default": {},\n')):
        text, before = (tmp_path / file).read_text(), (ROOT / file).read_text()
        assert text.count(line.format(13)) == 1
        assert text.replace(line.format(13), line.format(12)) == before
    assert (tmp_path / FILES[1]).read_text() == (ROOT / FILES[1]).read_text()


def test_help(run_tool):
    code, out, _ = run_tool("make_docs", "--help")
    assert code == 0
    assert all(file in " ".join(out.split()) for file in FILES)
