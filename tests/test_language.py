"""Words and sentences of pages, help texts, messages, docstrings and comments, by `tests/language.py`."""

import pytest

from tests.language import MOST_WORDS, ROOT, offences, project_files, sentences

# they name what the rules exclude
EXEMPT = {"CONTRIBUTING.md", "docs/development/style.md"}


def test_the_project_follows_the_rules():
    files = [file for file in project_files() if file.relative_to(ROOT).as_posix() not in EXEMPT]
    assert {"README.md", "engine/training/trainer.py", "docs/tools/train.md", "configs/custom.yaml"} <= {
        file.relative_to(ROOT).as_posix() for file in files
    }
    found = [str(offence) for file in files for offence in offences(file)]
    assert not found, "\n".join(found)


def problems_in(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return [(line, problem.split(":")[0]) for _, line, problem in offences(file)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.md", "Fine.\n\nIt is\ntold by a log line.\n", [(4, "'told'")]),
        ("a.md", "The key `told` and\n\n```\ntold\n```\n\n[judge](told.md)\n", [(7, "'judge'")]),
        ("a.md", "Who has a GPU uses it.\n", [(1, "a sentence starts with 'Who'")]),
        ("a.md", "## What is a mask?\n", []),
        ("a.py", '"""Return it anew."""\n', [(1, "'anew'")]),
        ("a.py", 'raise ValueError(f"{count} boxes are no\\nboxes")\n', []),
        ("a.py", 'raise ValueError(f"{count} is no box")\n', [(1, "'is no'")]),
        ("a.py", "x = 1  # whatever\n\n# one\n# told\n", [(1, "'whatever'"), (4, "'told'")]),
        ("a.py", 'x = "told"\n', []),
        ("a.yaml", "# fine\nkey: told  # a picture\n", [(2, "'picture'")]),
        ("a.j2", "<style>told</style>\n<p>{{ told }} of a verdict</p>\n", [(2, "'verdict'")]),
    ],
)
def test_what_is_found(tmp_path, name, text, expected):
    assert problems_in(tmp_path, name, text) == expected


def test_long_sentences(tmp_path):
    words = " ".join(["word"] * MOST_WORDS)
    assert problems_in(tmp_path, "a.md", f"Some {words}.\n") == [(1, f"{MOST_WORDS + 1} words, at most {MOST_WORDS}")]
    assert problems_in(tmp_path, "a.md", f"{words}.\n") == []
    fewer = words.partition(" ")[2]
    assert problems_in(tmp_path, "a.py", f'"""One.\n\nArgs:\n    a: {fewer}\n    b: {fewer}\n"""\n') == []


def test_items_cells_and_arguments_end_a_sentence():
    text = "One two: three.\n- four\n- five\n| six | seven |\n\nEight"
    assert [sentence.strip("| ") for sentence in sentences(text)] == [
        "One two: three.", "four", "five", "six", "seven", "Eight"
    ]  # fmt: skip
