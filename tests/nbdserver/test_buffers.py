"""Chunks come back when the last holder lets go, and the budgets add up."""

from __future__ import annotations

import random

import pytest

from nbdserver.buffers import CHUNK_BYTES, CHUNK_BYTES_MAX, ByteBudget, Chunk, ChunkPool
from nbdserver.errors import LocalError

MIB = 1 << 20


def a_pool(limit: int = 512 * MIB, out: int = 128 * MIB, spare: int = 4 * MIB) -> ChunkPool:
    return ChunkPool(ByteBudget(limit), out, spare)


def taken(pool: ChunkPool, capacity: int = CHUNK_BYTES) -> Chunk:
    chunk = pool.take(capacity)
    assert chunk is not None
    return chunk


def test_chunk_returns_to_its_pool_with_the_last_release() -> None:
    pool = a_pool()
    chunk = taken(pool)
    chunk.retain()
    chunk.release()
    assert pool.out_bytes == CHUNK_BYTES
    chunk.release()
    assert pool.out_bytes == 0
    assert taken(pool) is chunk


def test_one_release_too_many_is_our_own_error() -> None:
    chunk = taken(a_pool())
    chunk.release()
    with pytest.raises(LocalError):
        chunk.release()


def test_length_that_nobody_bounded_is_refused_loudly() -> None:
    with pytest.raises(LocalError):
        a_pool().take(CHUNK_BYTES_MAX + 1)


def test_first_chunk_is_to_be_had_when_the_budget_is_spent() -> None:
    pool = a_pool(limit=0)
    first = taken(pool)
    assert pool.take() is None
    first.release()
    assert taken(pool) is first


def test_allowance_comes_back_with_a_chunk_that_is_not_kept() -> None:
    pool = a_pool(limit=0, spare=0)
    for _ in range(3):
        taken(pool).release()


def test_large_chunk_is_charged_for_what_exceeds_the_allowance() -> None:
    pool = a_pool()
    chunk = taken(pool, 32 * MIB)
    assert pool.budget.used_bytes == 32 * MIB - CHUNK_BYTES
    chunk.release()
    assert pool.budget.used_bytes == 0


def test_pool_gives_no_more_than_its_own_limit() -> None:
    pool = a_pool(out=3 * CHUNK_BYTES)
    chunks = [taken(pool) for _ in range(3)]
    assert pool.take() is None
    chunks[0].release()
    assert pool.take() is chunks[0]


def test_chunk_that_came_back_last_is_given_out_first() -> None:
    pool = a_pool()
    chunks = [pool.take(), pool.take(), pool.take()]
    for chunk in chunks:
        assert chunk is not None
        chunk.release()
    assert pool.take() is chunks[2]
    assert pool.take() is chunks[1]


def test_spares_of_one_pool_are_given_up_for_another() -> None:
    budget = ByteBudget(4 * MIB)
    hoarder = ChunkPool(budget, 128 * MIB, 4 * MIB)
    for chunk in [taken(hoarder) for _ in range(3)]:
        chunk.release()
    assert budget.used_bytes == 2 * CHUNK_BYTES
    other = ChunkPool(budget, 128 * MIB, 4 * MIB)
    assert taken(other, 4 * MIB).capacity == 4 * MIB


def test_waiter_is_called_once_after_bytes_come_back() -> None:
    budget = ByteBudget(100)
    calls: list[int] = []
    assert budget.take(100)
    assert not budget.take(1)
    budget.wait(lambda: calls.append(1))
    budget.give(10)
    budget.give(10)
    assert calls == [1]


def test_nobody_keeps_spares_while_somebody_waits() -> None:
    pool = a_pool()
    first, second = taken(pool), taken(pool)
    pool.budget.wait(lambda: None)
    second.release()
    assert pool.budget.used_bytes == 0
    first.release()


def test_closed_pool_frees_what_comes_back_late() -> None:
    pool = a_pool()
    chunks = [taken(pool) for _ in range(3)]
    pool.close()
    for chunk in chunks:
        chunk.release()
    assert pool.budget.used_bytes == 0


def test_charges_add_up_over_any_order_of_holds() -> None:
    chance = random.Random(7)
    budget = ByteBudget(64 * MIB)
    pools = [ChunkPool(budget, 40 * MIB, 3 * MIB) for _ in range(3)]
    out: list[Chunk] = []
    for _ in range(2000):
        if out and chance.random() < 0.5:
            out.pop(chance.randrange(len(out))).release()
        else:
            chunk = chance.choice(pools).take(chance.choice((0, MIB, 2 * MIB, 20 * MIB)))
            if chunk is not None:
                out.append(chunk)
        assert 0 <= budget.used_bytes <= budget.limit_bytes
    for chunk in out:
        chunk.release()
    for pool in pools:
        pool.close()
    assert budget.used_bytes == 0
