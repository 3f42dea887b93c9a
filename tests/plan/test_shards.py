"""A suite dealt into shards: every unit once, alike everywhere, and none without work."""

from __future__ import annotations

import random

import pytest

from attnbench.errors import BadInput
from attnbench.plan.shards import Shard, deal, read_shard, rounds_by_key
from attnbench.problem import block_of
from tests.stored import cell

BLOCKS = [f"core.fwd.n{2**i}" for i in range(7)]
SECONDS = {block: random.Random(block).uniform(0.1, 5.0) for block in BLOCKS}
CHECKS = dict.fromkeys(BLOCKS, 0.1)
ROUNDS = 3
UNITS = {(block, number) for block in BLOCKS for number in range(1, ROUNDS + 1)}


@pytest.mark.parametrize("of", [1, 2, 3, 4, 8, 20, 21])
def test_every_unit_is_in_one_shard_and_every_shard_has_one(of: int) -> None:
    shards = deal(SECONDS, CHECKS, ROUNDS, of)
    assert len(shards) == of
    assert sorted(unit for shard in shards for unit in shard) == sorted(UNITS)
    assert all(shards)
    if of >= ROUNDS:
        assert all(len({block for block, _ in shard}) == len(shard) for shard in shards), "rounds on other devices"


def test_shards_take_about_as_long_as_each_other() -> None:
    loads = [sum(SECONDS[block] for block, _ in shard) for shard in deal(SECONDS, CHECKS, ROUNDS, 4)]
    assert max(loads) < 1.3 * sum(loads) / len(loads)
    in_order = [sum(SECONDS[block] for block, _ in sorted(UNITS)[i::4]) for i in range(4)]
    assert max(loads) < max(in_order)


def test_dealing_is_the_same_again_and_more_shards_than_units_are_refused() -> None:
    assert deal(SECONDS, CHECKS, ROUNDS, 4) == deal(dict(SECONDS), CHECKS, ROUNDS, 4)
    with pytest.raises(BadInput, match=r"22 shards, but the suite has 21 units to deal: 7 blocks .* in 3 rounds"):
        deal(SECONDS, CHECKS, ROUNDS, 22)


def test_the_cells_of_a_unit_are_those_of_its_block() -> None:
    cells = [cell(name, seq_len=n) for name in ("softmax", "performer") for n in (32, 64)]
    keys = [each.key for each in cells]
    near, far = (block_of(cell(seq_len=n).key) for n in (32, 64))
    assert near == "core.fwd.float32.full.b1.h4.c32.n32"
    rounds = rounds_by_key(keys, [(far, 3), (far, 1)])
    assert rounds == {key: (1, 3) for key in keys if block_of(key) == far}
    assert len(rounds) == 2


def test_a_shard_is_read_and_shown() -> None:
    assert read_shard("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize("text", ["", "2", "0/8", "9/8", "2/0", "-1/8", "02/8", "2/8/1", "1/100001", "a/b", "2 / 8"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"--shard .*such as 2/8"):
        read_shard(text)
