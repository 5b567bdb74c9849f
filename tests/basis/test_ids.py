"""Ids grow, whatever the clock does and however many ask at once."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable

from holdfast.basis.ids import Ids, first_id

MILLI = 1000
FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def standing(time: int) -> Callable[[], int]:
    return lambda: time


def test_an_id_has_26_characters_that_nobody_mistakes() -> None:
    ids = Ids(lambda: 1_700_000_000_000_000)
    assert all(FORM.fullmatch(ids.new()) for _ in range(1000))


def test_an_id_begins_with_its_time() -> None:
    # The example of the ULID specification.
    assert Ids(lambda: 1469918176385 * MILLI).new().startswith("01ARYZ6S41")


def test_ids_order_by_time_as_texts() -> None:
    times = [0, 1, 31, 32, 1023, 1024, 10**9, 1_700_000_000_000, 2**47, 2**48 - 1]
    made = [Ids(standing(now * MILLI)).new() for now in times]
    assert made == sorted(made)


def test_ids_grow_while_the_clock_stands_still() -> None:
    ids = Ids(lambda: 1_700_000_000_000_000)
    made = [ids.new() for _ in range(10_000)]
    assert made == sorted(set(made))


def test_ids_grow_while_the_clock_goes_back() -> None:
    times = iter(range(10**15, 0, -(10**12)))
    ids = Ids(lambda: next(times))
    made = [ids.new() for _ in range(900)]
    assert made == sorted(set(made))


def test_ids_grow_when_chance_gives_its_smallest_and_largest() -> None:
    now = iter([5 * MILLI, 5 * MILLI, 5 * MILLI, 6 * MILLI, 6 * MILLI])
    chance = iter([2**79 - 1, 0, 2**40 - 1, 0, 0])
    made = [ids.new() for ids in [Ids(lambda: next(now), lambda bits: next(chance))] for _ in range(5)]
    assert made == sorted(set(made))


def test_a_million_ids_in_one_millisecond_stay_in_it() -> None:
    ids = Ids(lambda: 7 * MILLI, lambda bits: 2**bits - 1)
    first = ids.new()
    # The random part starts in the lower half of its range, and each step is 2^40 at most.
    assert first[:10] == "0000000007"
    for _ in range(1000):
        last = ids.new()
    assert last[:10] == "0000000007"
    assert 2**79 + 2**40 * 1_000_000 < 2**80


def test_threads_never_get_the_same_id_and_each_sees_its_own_grow() -> None:
    ids = Ids(lambda: 1_700_000_000_000_000)
    gate = threading.Barrier(8)
    made: list[list[str]] = []

    def make() -> None:
        gate.wait()
        made.append([ids.new() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(own == sorted(own) for own in made)
    assert len({each for own in made for each in own}) == 16_000


def test_two_factories_make_different_ids() -> None:
    a, b = Ids(lambda: 0), Ids(lambda: 0)
    assert not {a.new() for _ in range(100)} & {b.new() for _ in range(100)}


def test_with_the_same_chance_the_same_ids_come() -> None:
    first, second = (Ids(lambda: 99_000, random.Random(3).getrandbits) for _ in range(2))
    assert [first.new() for _ in range(5)] == [second.new() for _ in range(5)]


def test_the_first_id_of_a_moment_divides_the_ids_before_it_from_the_others() -> None:
    now = 1_700_000_000_000_000
    made = [Ids(standing(at)).new() for at in (now - 1000, now, now + 999, now + 1000)]
    assert [one < first_id(now) for one in made] == [True, False, False, False]
    assert [one < first_id(now + 1000) for one in made] == [True, True, True, False]
    assert first_id(-1) == "0" * 26
