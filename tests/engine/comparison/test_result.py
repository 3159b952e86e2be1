"""Groups of seeds, and the comparison as plain values."""

import dataclasses
import json
import math
import statistics

import pytest


def test_mean_and_spread(comparison):
    group = comparison.groups["dcn"]
    one, two = group.values("AP50")
    assert one != two
    assert group.mean("AP50") == (one + two) / 2
    assert math.isclose(group.spread("AP50"), abs(one - two) / math.sqrt(2))
    assert math.isnan(comparison.groups["slow"].spread("AP50"))
    assert math.isnan(group.mean("APl"))  # there is no large object


def test_plain_values(comparison, folders):
    found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert [*found["runs"]] == [str(folder) for folder in folders]
    run = found["runs"][str(folders[2])]
    assert run["config"]["model.backbone.dcn_v2_stages"] == [2]
    assert run["figures"]["APl"] is None
    assert (run["parameters"], run["steps"], run["step_s"]) == (832_035, 12, 0.2)
    assert [*found["groups"]] == ["plain", "dcn", "slow"]
    group = found["groups"]["dcn"]
    assert group["runs"] == [str(folder) for folder in folders[2:4]]
    assert group["seeds"] == [1, 2]
    values = comparison.groups["dcn"].values("AP bar")
    assert group["figures"]["AP bar"] == {
        "mean": statistics.fmean(values),
        "std": pytest.approx(statistics.stdev(values)),
        "values": values,
    }
    assert found["groups"]["slow"]["figures"]["AP"]["std"] is None
    assert group["figures"]["APl"] == {"mean": None, "std": None, "values": [None, None]}
    assert group["costs"] == dataclasses.asdict(comparison.groups["dcn"].costs)
    difference = comparison.differences["dcn"]["AP"]
    assert found["differences"]["dcn"]["AP"] == difference._asdict() | {"exceeds_uncertainty": True}
    assert found["differences"]["slow"]["AP"]["seeds_low"] is None
    assert found["conclusions"] == comparison.conclusions
    assert found["options"]["train.lr"] == {"plain": "0.005", "dcn": "0.005", "slow": "0.001"}
    assert found["settings"] == comparison.settings


def test_plain_values_of_masks(mask_comparison):
    found = json.loads(json.dumps(mask_comparison.as_json(), allow_nan=False))
    groups, difference = found["groups"], mask_comparison.differences["shifted"]["mask_AP"]
    (value,) = mask_comparison.groups["shifted"].values("mask_AP")
    assert groups["shifted"]["figures"]["mask_AP"] == {"mean": value, "std": None, "values": [value]}
    assert groups["shifted"]["figures"]["mask_APl"]["mean"] is None
    assert [key for key in groups["boxes"]["figures"] if "mask" in key] == []
    assert found["differences"]["shifted"]["mask_AP"] == difference._asdict() | {"exceeds_uncertainty": True}
    assert "mask_AP" not in found["differences"]["boxes"]
