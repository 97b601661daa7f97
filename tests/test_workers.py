"""Worker processes: results in order, errors of the first job, children shared and none left behind."""

import os
import time

import pytest

from gristmill.errors import GristmillError, InputError
from gristmill.workers import Worker, crew, map_ordered


def square(number):
    return number * number, os.getpid()


def slow_first(number):
    time.sleep(0.3 if number == 0 else 0)
    return number


def refuses(number):
    if number in (3, 5):
        raise InputError(f"no {number}")
    return number


def dies(number):
    if number == 1:
        os._exit(9)
    return number


def asks(number, ask):
    return ask(number) + 1


def doubled(number):
    return [value for value, _ in map_ordered("tests.test_workers:square", range(number), workers=2)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert list(map_ordered("tests.test_workers:slow_first", iter(range(20)), workers)) == list(range(20))
    assert list(map_ordered("tests.test_workers:slow_first", [], workers)) == []


def test_jobs_are_begun_only_so_far_ahead():
    """Without the bound an endless source would be read for ever."""
    begun = []

    def endless():
        number = 0
        while True:
            begun.append(number)
            yield number
            number += 1

    results = map_ordered("tests.test_workers:slow_first", endless(), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(begun) <= 3 + 4


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_the_order_of_the_jobs_is_raised(workers):
    got = []
    with pytest.raises(InputError, match="no 3"):
        for value in map_ordered("tests.test_workers:refuses", range(10), workers):
            got.append(value)
    assert got == [0, 1, 2]


def test_a_crew_is_shared_and_ends_with_its_block():
    with crew(2) as shared:
        first = {pid for _, pid in map_ordered("tests.test_workers:square", range(50))}
        with crew() as inner:
            assert inner is shared
        second = {pid for _, pid in map_ordered("tests.test_workers:square", range(50), workers=2)}
        (child,) = shared.children(5)
        pid = child._process.pid
        assert first | second <= {os.getpid(), pid}
    assert child.closed
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_dies_is_one_sentence_and_is_replaced():
    with crew(2) as shared:
        (child,) = shared.children(1)
        with pytest.raises(GristmillError, match="exit code 9"):
            child.run("tests.test_workers:dies", 1)
        (other,) = shared.children(1)
        assert other is not child and other.run("tests.test_workers:dies", 2) == 2


def test_a_function_may_ask_its_caller():
    child = Worker()
    try:
        assert child.run("tests.test_workers:asks", 3, lambda question: question * 10) == 31
        with pytest.raises(ZeroDivisionError):
            child.run("tests.test_workers:asks", 3, lambda question: question / 0)
        assert child.closed
    finally:
        child.close()
