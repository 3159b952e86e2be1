"""tools/make_docs.py: writes the page and the schema of the config into the clone."""

import re
import shutil

from engine.config.loading import CONFIG_DIR

ROOT = CONFIG_DIR.parent


def test_it_writes_both_files(run_process, tmp_path):
    """In a copy, where both are missing and an option has another default."""
    for folder in ("tools", "engine", "models", "dcn", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "engine/config/options.py"
    config.write_text(re.sub(r"( epochs: .*) = 12\n", r"\1 = 13\n", config.read_text()))
    code, out, err = run_process(tmp_path / "tools/make_docs.py", cwd="/")
    assert (code, err) == (0, "")
    assert out == "docs/reference/config.md is up to date\nconfigs/schema.json is up to date\n"
    row = "| `train.epochs` | integer >= 1 | `{}` |"
    for file, line in (("docs/reference/config.md", row), ("configs/schema.json", '     "default": {},\n')):
        text, before = (tmp_path / file).read_text(), (ROOT / file).read_text()
        assert text.count(line.format(13)) == 1
        assert text.replace(line.format(13), line.format(12)) == before


def test_help(run_tool):
    code, out, _ = run_tool("make_docs", "--help")
    assert code == 0
    assert "docs/reference/config.md and configs/schema.json" in out
