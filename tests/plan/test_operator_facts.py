from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnbench.errors import BadInput
from attnbench.operator import Complexity, Operator
from attnbench.plan import operator_facts as module
from attnbench.plan.operator_facts import definitions
from attnbench.problem import Cell, Problem
from attnbench.properties import by_form
from attnbench.registry import operators, resolve


def test_growth_exactness_and_family_are_told_once_per_variant() -> None:
    cells = [
        Cell(name, "reference", "core", "fwd", Problem(n, 64), params)
        for n in (64, 128)
        for name, params in (("softmax", {}), ("linformer", {"k": 8, "sharing": "kv"}), ("linformer", {"k": 16}))
    ]
    found = definitions(cells)
    assert found["exact"] == ["softmax {}"]
    assert found["families"] == {"softmax": "exact", "linformer": "lowrank"}
    assert found["defaults"].keys() == {"softmax", "linformer"}
    assert found["defaults"]["linformer"].items() >= {("k", 256), ("sharing", "headwise")}
    assert found["stated"]["softmax {}"] == {"time": "n^2", "memory": "n^2"}
    assert found["stated"]['linformer {"k":8,"sharing":"kv"}'] == {"time": "n", "memory": "n"}
    assert len(found["stated"]) == 3
    assert found["estimates"] == {}


def test_the_map_that_is_estimated_is_named() -> None:
    given = [("performer", {"kind": k, "m": 8}) for k in ("softmax", "relu")] + [("rfa", {"m": 8, "gate": "none"})]
    found = definitions(Cell(name, "reference", "core", "fwd", Problem(64, 64), params) for name, params in given)
    assert found["estimates"] == {
        'performer {"kind":"softmax","m":8}': "softmax attention",
        'rfa {"gate":"none","m":8}': "attention with the Gaussian kernel of normalised q and k",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"complexity": lambda params: Complexity("N^2", "n")}, r"complexity states 'N\^2'"),  # type: ignore[arg-type]
        ({"estimates": lambda params: print}, "estimates gives builtin_function_or_method; allowed: None, SOFTMAX"),
        ({"pairs": lambda params, causal: "some"}, "what it can do: .*pairs gives 'some'; allowed: all, chosen, fixed"),
        ({"approaches": lambda params: "zoom"}, "what it can do: .*approaches gives 'zoom'; allowed: None, value_map"),
        ({"exact": lambda params: "yes"}, "what it can do: .*exact gives 'yes'; allowed: True or False"),
        ({"any_length": lambda params: 1}, "what it can do: .*any_length gives 1; allowed: True or False"),
        ({"data_dependent": lambda params: 1 / 0}, "what it can do: .*ZeroDivisionError"),
    ],
)
def test_what_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str) -> None:
    class Source:
        location = "own/softmax.py"
        family = "own"

        def load(self) -> object:
            return replace(operators()["softmax"].load(), **given)

    monkeypatch.setattr(module, "operators", lambda operators_from: {"softmax": Source()})
    with pytest.raises(BadInput, match=rf"own/softmax\.py: {message}"):
        definitions([Cell("softmax", "reference", "core", "fwd", Problem(64, 64), {})])


def properties_of(operator: Operator) -> dict[str, dict[str, bool]]:
    return by_form(operator, resolve(operator, {}))


def test_a_definition_for_some_sizes_only_has_its_forms() -> None:
    """Sizes are asked for that nobody runs: what a definition says of them is no statement of its forms."""
    softmax = operators()["softmax"].load()
    sevens = replace(softmax, why_not=lambda problem, *_: "N is a multiple of 7" if problem.seq_len % 7 else None)
    assert properties_of(sevens) == properties_of(softmax)
    once = replace(softmax, why_not=lambda problem, *_: "all at once" if problem.past else None)
    assert not properties_of(once)["causal"]["decode"]
    full = replace(softmax, why_not=lambda problem, *_: "not causal" if problem.causal else None)
    small = Problem(14, 8, 2)
    few = replace(softmax, why_not=lambda problem, *_: {14: "not causal" if problem.causal else None}[problem.seq_len])
    assert not by_form(few, resolve(few, {}), at=small)["full"]["causal"]
    assert properties_of(full) == {"full": {**properties_of(softmax)["full"], "causal": False, "decode": False}}


def test_what_a_kind_cannot_is_no_property_of_it() -> None:
    sinkhorn = operators()["sinkhorn"].load()
    found = {kind: by_form(sinkhorn, resolve(sinkhorn, {"kind": kind})) for kind in ("sinkhorn", "sortcut")}
    assert found["sinkhorn"]["full"]["causal"]
    assert found["sortcut"].keys() == {"full"}
    assert not found["sortcut"]["full"]["causal"]
