"""A study: gains at several deformations, on a page and as plain values."""

import dataclasses
import json
import math
import re
from html import unescape

import pytest

from engine.comparison.differences import Difference
from engine.comparison.report import interval, signed
from engine.comparison.study import Study, render_study
from engine.display.tables import percent


@pytest.fixture(scope="module")
def study(comparison) -> Study:
    """Two groups at deformation 0, and three at 0.5, where the gain of dcn is 20 more."""
    weak = dataclasses.replace(
        comparison,
        groups={name: group for name, group in comparison.groups.items() if name != "slow"},
        options={key: cells[:2] for key, cells in comparison.options.items()},
        differences={
            "dcn": {
                name: Difference(*[end and end - 0.2 for end in found])
                for name, found in comparison.differences["dcn"].items()
            }
        },
    )
    return Study({0.0: weak, 0.5: comparison})


def test_gains(study, comparison):
    found = comparison.differences["dcn"]["AP"]
    assert {name: [*gains] for name, gains in study.gains.items()} == {"dcn": [0.0, 0.5], "slow": [0.5]}
    assert study.gains["dcn"][0.5] == found
    assert study.gains["dcn"][0.0].value == pytest.approx(found.value - 0.2)
    assert study.strongest is comparison
    # of what was trained at one deformation alone nothing can be said
    (sentence,) = study.sentences
    assert sentence.startswith(
        f"dcn gains {signed(found.value - 0.2)} AP at deformation 0 and {signed(found.value)} AP at"
    )
    assert f"{100 * found.value / comparison.groups['plain'].mean('AP'):+.0f} % of its AP" in sentence
    assert "The gain changes by +20.0 (95 % interval" in sentence


def test_why_the_gain_does_not_grow(comparison, study):
    """With the deformations exchanged the gain falls; of all groups the seeds that differ most are told of."""
    dcn = comparison.groups["dcn"]
    apart = dataclasses.replace(dcn, metrics=[dcn.metrics[0] | {"AP": 0.1}, dcn.metrics[1] | {"AP": 0.9}])
    strong = dataclasses.replace(comparison, groups=comparison.groups | {"dcn": apart})
    (sentence,) = Study({0.0: strong, 0.5: study.comparisons[0.0]}).sentences
    assert "The gain changes by -20.0" in sentence
    assert f"over seeds is up to {100 * (0.9 - 0.1) / 2**0.5:.1f}, too large to resolve a change of 20.0" in sentence


def test_plain_values(study, comparison):
    written = json.loads(json.dumps(study.as_json(), allow_nan=False))
    assert written["sentences"] == study.sentences
    assert written["gains"]["dcn"]["0"]["value"] == study.gains["dcn"][0.0].value
    assert written["deformations"]["0.5"]["groups"]["plain"]["seeds"] == [0, 1]


def test_gains_that_do_not_exist(comparison):
    nothing = {"dcn": {"AP": Difference(*[math.nan] * 5, None, None)}, "slow": comparison.differences["slow"]}
    study = Study({0.5: dataclasses.replace(comparison, differences=nothing)})
    written = json.loads(json.dumps(study.as_json(), allow_nan=False))
    assert written["gains"]["dcn"]["0.5"]["value"] is None


def test_page(study, comparison):
    html = render_study(study, {"deformation <0>": "weak & small.html"})
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)))
    assert study.sentences[0] in text
    for name, group in comparison.groups.items():
        assert f"{percent(group.mean('AP'))}" in text, name
    for gain in study.gains["dcn"].values():
        assert f"{signed(gain.value)} ({interval(gain.low, gain.high)})" in text
    assert '<a href="weak &amp; small.html">deformation &lt;0&gt;</a>' in html
    # the comparison at the strongest deformation is there too
    for sentence in comparison.conclusions.values():
        assert sentence in text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len({*ids})


def test_one_deformation(comparison):
    study = Study({0.5: comparison})
    assert study.sentences == []
    assert "At the strongest deformation" in render_study(study, {})
