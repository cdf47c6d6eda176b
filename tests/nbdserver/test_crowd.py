"""Who makes way at the limit of handshakes, under silence, floods and both."""

from __future__ import annotations

import pytest

from nbdserver.crowd import SHELTER_S, Crowd, origin_of

LIMIT = 8


def full_of(origin: str) -> Crowd[str]:
    crowd: Crowd[str] = Crowd(LIMIT)
    for number in range(LIMIT):
        assert crowd.enter(f"{origin} {number}", origin, float(number) / 100) is None
    return crowd


def test_nobody_goes_below_the_limit() -> None:
    crowd = full_of("silent")
    crowd.leave("silent 3")
    assert crowd.enter("honest", "silent", 0.2) is None
    assert len(crowd) == LIMIT


def test_silent_handshakes_of_one_origin_keep_nobody_out() -> None:
    crowd = full_of("silent")
    assert crowd.enter("honest", "elsewhere", 0.1) == "silent 0"
    assert crowd.enter("second", "silent", SHELTER_S + 5) == "silent 1", "nor from their own"
    assert len(crowd) == LIMIT


def test_flood_costs_only_its_own_origin() -> None:
    crowd: Crowd[str] = Crowd(LIMIT)
    assert crowd.enter("honest", "elsewhere", 0.0) is None
    gone = [crowd.enter(f"flood {number}", "flood", number / 1000) for number in range(5000)]
    assert "honest" not in gone
    assert len(crowd) == LIMIT


def test_handshake_has_its_time_against_a_flood_from_its_own_origin() -> None:
    crowd: Crowd[str] = Crowd(LIMIT)
    assert crowd.enter("honest", "shared", 0.0) is None
    steps = int(SHELTER_S * 1000)
    gone = {crowd.enter(f"flood {number}", "shared", number / 1000) for number in range(steps)}
    assert "honest" not in gone
    assert crowd.enter("late", "shared", SHELTER_S) == "honest"


def test_many_origins_lose_their_oldest_and_lock_nobody_out() -> None:
    crowd: Crowd[str] = Crowd(LIMIT)
    for number in range(LIMIT):
        assert crowd.enter(f"{number}", f"origin {number}", float(number)) is None
    assert crowd.enter("more", "origin 3", 20.0) == "3", "its origin had most then"
    assert crowd.enter("honest", "elsewhere", 20.0) == "0"
    assert crowd.enter("next", "another", 20.0) == "1"
    for number in range(5):
        crowd.enter(f"late {number}", f"late {number}", 20.0)
    assert crowd.enter("too many", "yet another", 20.5) == "too many", "all had no time yet"


def test_one_who_comes_back_is_not_turned_away() -> None:
    crowd = full_of("one")
    crowd.come_back("answered", "two", 3.0)
    assert len(crowd) == LIMIT + 1
    crowd.leave("answered")
    crowd.leave("answered")
    assert len(crowd) == LIMIT


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix pid 17", "unix pid 17"),
    ],
)
def test_origin_is_what_one_machine_has_for_itself(host: str, origin: str) -> None:
    assert origin_of(host) == origin
