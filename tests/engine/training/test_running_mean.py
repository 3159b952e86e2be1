"""Means of records, also over a resume."""

from engine.training.running_mean import RunningMean


def test_the_mean_resumes_and_is_empty_after_clear():
    mean = RunningMean()
    mean.add({"a": 1.0, "b": 10.0})
    mean.add({"a": 2.0, "b": 20.0})
    other = RunningMean()
    other.load_state_dict(mean.state_dict())
    for each in (mean, other):
        each.add({"a": 6.0, "b": 30.0})
        assert each.mean() == {"a": 3.0, "b": 20.0}
        each.clear()
        each.add({"c": 5.0})
        assert each.mean() == {"c": 5.0}
