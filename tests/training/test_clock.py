"""How long a run takes: computed from its first steps, told once, in few words."""

import time

import pytest

from tinygmf.training.clock import TIMED, Clock, spoken


def test_the_rest_of_a_run_is_told_once_from_computing_and_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow_batches():
        while True:
            now[0] += 5  # decoding
            yield "batch"

    clock, told = Clock(), []
    clock.tell = told.append
    batches = clock.waiting(slow_batches())
    for made in range(1, 9):
        with clock:
            next(batches)
            now[0] += 100 if made == 1 else 2  # the first compiles
        clock.step_made(left=1000 - made, of_epoch=10 - made, batches=30)
    last = 1 + TIMED
    assert told == [pytest.approx(2 * (1000 - last + 30 / 3) + 5 * (10 - last))]


def test_batches_come_through_the_clock_unchanged():
    assert list(Clock().waiting(iter("abc"))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "about 1 s"),
        (89, "about 89 s"),
        (125, "about 2 min"),
        (3 * 3600, "about 3 h"),
        (72 * 3600, "about 3 days"),
    ],
)
def test_a_time_is_told_in_few_words(seconds, words):
    assert spoken(seconds) == words
