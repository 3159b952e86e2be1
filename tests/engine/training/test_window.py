"""Means of records, also over a resume."""

from engine.training.window import Window


def test_the_mean_goes_on_after_a_resume_and_starts_anew_after_clear():
    window = Window()
    window.add({"a": 1.0, "b": 10.0})
    window.add({"a": 2.0, "b": 20.0})
    other = Window()
    other.load_state_dict(window.state_dict())
    for each in (window, other):
        each.add({"a": 6.0, "b": 30.0})
        assert each.mean() == {"a": 3.0, "b": 20.0}
        each.clear()
        each.add({"c": 5.0})
        assert each.mean() == {"c": 5.0}
