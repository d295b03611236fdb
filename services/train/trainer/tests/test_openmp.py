"""When OpenMP's threads may spin. That it changes no bit, test_train.py's digests say; that it is faster, tests/bench."""

import os
import threading
import time

import openmp
import pytest
import torch  # noqa: F401  the sleeper imports it, which takes long on a busy machine


@pytest.mark.parametrize(
    ("others", "threads", "cores", "sleeps"),
    [(0.1, 2, 2, False), (0.5, 2, 2, True), (1.0, 2, 4, False), (2.5, 2, 4, True), (0.0, 4, 2, True)],
)
def test_threads_sleep_where_others_want_the_cores(others, threads, cores, sleeps):
    assert openmp.must_sleep(others, threads, cores) == sleeps


@pytest.mark.parametrize(("limit", "threads"), [("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), (None, None)])
def test_there_are_no_more_threads_than_the_container_may_use(tmp_path, limit, threads):
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit + "\n")
    assert openmp.threads_within(file) == threads


@pytest.mark.skipif(not openmp.STAT.exists(), reason="only Linux tells it")
def test_busy_time_counts_what_this_process_does():
    cores = os.sched_getaffinity(0)
    before, own = openmp.busy_seconds(cores), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    assert openmp.busy_seconds(cores) - before >= 0.25


def test_the_sleeper_is_there_while_it_is_wanted():
    def sleepers():
        return [each for each in threading.enumerate() if each.name == "openmp-sleeper"]

    sleeper = openmp.Sleeper()
    first = sleepers()
    assert len(first) == 1
    sleeper.is_wanted(True)
    assert sleepers() == first
    sleeper.is_wanted(False)
    first[0].join(timeout=60)
    assert sleepers() == []
    sleeper.is_wanted(True)
    (second,) = sleepers()
    sleeper.is_wanted(False)
    second.join(timeout=60)
