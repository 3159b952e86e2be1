"""Threads read a few items ahead, in order."""

import threading
import time

import pytest

from data.read_ahead import read_ahead


def test_results_are_in_order_and_few_are_read_ahead():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def read(number):
        time.sleep(0.002 if number % 2 else 0)
        return number, threading.current_thread() is not threading.main_thread()

    for expected, (number, in_thread) in enumerate(read_ahead(read, items(), threads=3)):
        assert (number, in_thread) == (expected, True)
        assert len(taken) <= expected + 4
    assert expected == 19


def test_an_error_is_raised_at_its_place():
    results = read_ahead(lambda number: 6 / number, [3, 2, 0, 1], threads=2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
