"""kao_kv and kao_qkv, scope layer: the means are projected, which gives what projecting every pixel gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.operators.lowrank import kao_kv, kao_qkv
from attnbench.problem import MODES, Mode, Problem
from attnbench.projection import projected
from tests.operators.small import all_close, close, small

GAINS = {"kao_kv": kao_kv.gains, "kao_qkv": kao_qkv.gains}
PIXELS = {"kao_kv": 2, "kao_qkv": 0}
"""Maps, of four, that are applied to every pixel; the others to the h + w means."""

each = pytest.mark.parametrize("name", PIXELS)


@each
@given(h=st.integers(1, 5), w=st.integers(1, 6), heads=st.integers(1, 3), value_map=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_layer_is_the_one_that_projects_every_pixel(name: str, h: int, w: int, heads: int, value_map: bool) -> None:
    case = small(name, Problem.image(h, w, 4 * heads, heads, batch=2), "layer", value_map=value_map)
    core = small(name, case.problem, value_map=value_map)
    every_pixel = replace(case, form=projected(core.form, layout="map", gains=GAINS[name]))
    assert case.inputs.parameters.keys() == every_pixel.inputs.parameters.keys()
    assert close(case.output(), every_pixel.output())
    assert all_close(case.gradients(), every_pixel.gradients())
    assert not close(case.output(w_v=case.tensors["w_v"].t()), every_pixel.output())


@each
@pytest.mark.parametrize("value_map", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_layer_costs_its_core_and_the_maps_of_the_means(name: str, mode: Mode, value_map: bool) -> None:
    case = small(name, Problem.image(5, 7, 8, 2, batch=3), "layer", value_map=value_map)
    core = small(name, case.problem, value_map=value_map)
    projected_tokens = PIXELS[name] * 5 * 7 + (4 - PIXELS[name]) * (5 + 7)
    assert case.cost(mode).flops == case.cost(mode).reference_flops
    assert (
        case.cost(mode).flops - core.cost(mode).flops == (1 if mode == "fwd" else 3) * 2 * 3 * projected_tokens * 8 * 8
    )


@pytest.mark.parametrize(("name", "flops"), [("kao_kv", 143_130_624), ("kao_qkv", 6_881_280)])
def test_at_56x56_it_takes_what_the_operator_saves(name: str, flops: int) -> None:
    """C = 64, one head: 2·N·(h + w)·C or 2·(h + w)²·C multiply-adds, and 64² for each projected pixel or mean."""
    layer = small(name, Problem.image(56, 56, 64, 1), "layer")
    assert layer.cost().flops == flops
    every_pixel = projected(small(name, layer.problem).form, layout="map").cost(layer.problem, layer.params, "fwd")
    assert every_pixel.flops - flops == 2 * (4 - PIXELS[name]) * (56 * 56 - 112) * 64 * 64
