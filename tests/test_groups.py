from __future__ import annotations

from attnbench.groups import groups_of


def test_keys_and_values_are_in_the_order_given() -> None:
    groups = groups_of([("b", 2), ("a", 1), ("b", 0)])
    assert list(groups.items()) == [("b", [2, 0]), ("a", [1])]
    assert groups_of(()) == {}
