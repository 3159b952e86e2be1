"""Files of score thresholds."""

import json

import pytest

from engine.inference import read_thresholds


def test_thresholds_of_an_evaluation(tmp_path):
    file = tmp_path / "figures.json"
    by_class = {"cat": 0.5, "dog": None, "owl": 1}
    file.write_text(json.dumps({"AP": 0.3, "score_threshold": 0.25, "per_class_score_threshold": by_class}))
    assert read_thresholds(file) == {"cat": 0.5, "dog": 0.25, "owl": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([0.5], "must have score_threshold and per_class_score_threshold, as tools/eval.py --json writes them"),
        ({"score_threshold": 0.5}, "must have score_threshold and per_class_score_threshold"),
        ({"score_threshold": 0.5, "per_class_score_threshold": [0.5]}, "must have score_threshold"),
        (
            {"score_threshold": 2, "per_class_score_threshold": {"cat": "high", "dog": 0.5, "owl": True}},
            "3 are not: 'score_threshold': 2, 'cat': 'high', 'owl': True",
        ),
        ({"score_threshold": None, "per_class_score_threshold": {"cat": None}}, "no detection of the evaluation was"),
    ],
)
def test_other_files_are_errors(tmp_path, content, said):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"figures\.json") as error:
        read_thresholds(file)
    assert said in str(error.value)
