"""Scope block, which one function makes of every layer: against torch's own block, and against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import TransformerEncoderLayer
from torch.nn.functional import layer_norm

from attnbench.block import block, normed, with_block
from attnbench.kernels.library import graphs
from attnbench.measure.worker import checking
from attnbench.measure.worker.fake_memory import output_like, predict, run
from attnbench.measure.worker.returned import misfit_of_inputs, misfit_of_output
from attnbench.operator import Form
from attnbench.problem import MODES, Mode, Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.measuring import subject
from tests.operators.flops import FlopCounter
from tests.operators.small import Small, all_close, close, small
from tests.variants import IN_A_LAYER, sources

C, HEADS = 16, 4

OWN = {
    "norm_gain": (C,),
    "norm_shift": (C,),
    "mlp_gain": (C,),
    "mlp_shift": (C,),
    "mlp_in": (C, 4 * C),
    "mlp_out": (4 * C, C),
}
"""What a block has beside its layer, by shape."""

HOLD_THEIR_MLP = ("gmlp", "mlp_mixer")


def case_of(name: str, image: bool = False, **given: Any) -> Small:
    problem = Problem.image(3, 5, C, HEADS, batch=2) if image else Problem(15, C, HEADS, batch=2)
    changes = {key: given.pop(key) for key in ("causal", "kv_heads", "query_len") if key in given}
    return small(name, replace(problem, **changes), "block", **given)


def by_torch(case: Small) -> Tensor:
    """Softmax attention's block by torch's own, of the same weights."""
    tensors = case.tensors
    own = TransformerEncoderLayer(
        C, HEADS, 4 * C, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    zero = torch.zeros(1, dtype=torch.float64)
    weights = {
        "self_attn.in_proj_weight": torch.cat([tensors[name].t() for name in ("w_q", "w_k", "w_v")]),
        "self_attn.in_proj_bias": zero.expand(3 * C),
        "self_attn.out_proj.weight": tensors["w_o"].t(),
        "self_attn.out_proj.bias": zero.expand(C),
        "linear1.weight": tensors["mlp_in"].t(),
        "linear1.bias": zero.expand(4 * C),
        "linear2.weight": tensors["mlp_out"].t(),
        "linear2.bias": zero.expand(C),
        "norm1.weight": tensors["norm_gain"],
        "norm1.bias": tensors["norm_shift"],
        "norm2.weight": tensors["mlp_gain"],
        "norm2.bias": tensors["mlp_shift"],
    }
    n = case.problem.seq_len
    mask = torch.ones(n, n, dtype=torch.bool).triu(1) if case.problem.causal else None
    output: Tensor = torch.func.functional_call(own, weights, (tensors["x"], mask))
    return output


@pytest.mark.parametrize("causal", [False, True])
def test_the_block_of_softmax_is_torchs_own(causal: bool) -> None:
    case = case_of("softmax", causal=causal)
    assert close(case.output(), by_torch(case))
    assert all_close(case.gradients(), case.gradients(by_torch))
    assert close(case.impl("sdpa"), case.output())
    for name in OWN:  # each counts: the control of both
        assert not close(case.output(**{name: case.tensors[name] * 1.01}), case.output()), name


def by_hand(case: Small, layer: Form) -> Tensor:
    """x + layer(LN(x)), and an MLP of that, with the norms and GELU written out; pixel by pixel of an image."""
    tensors = case.tensors
    own = {name: tensors.pop(name) for name in OWN}
    x = tensors.pop("x")
    image = x.ndim == 4

    def normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        axis = 1 if image else -1
        centred = x - x.mean(axis, keepdim=True)
        scaled = centred * (centred.square().mean(axis, keepdim=True) + 1e-5).rsqrt()
        return scaled * (gain[:, None, None] if image else gain) + (shift[:, None, None] if image else shift)

    def projected(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bchw,ck->bkhw", x, w) if image else torch.einsum("bnc,ck->bnk", x, w)

    h = x + layer.reference(case.problem, case.params, x=normed(x, own["norm_gain"], own["norm_shift"]), **tensors)
    hidden = projected(normed(h, own["mlp_gain"], own["mlp_shift"]), own["mlp_in"])
    y: Tensor = h + projected(hidden / 2 * (1 + torch.erf(hidden / 2**0.5)), own["mlp_out"])
    return y


@pytest.mark.parametrize(
    ("name", "image"),
    [("linear_transformer", False), ("mamba2", False), ("hamburger", False), ("kao_qkv", True), ("pool", True)],
)
def test_a_block_is_a_norm_the_layer_and_an_mlp(name: str, image: bool) -> None:
    causal = operators()[name].load().full is not True
    case = case_of(name, image, causal=causal)
    layer = operators()[name].load().forms["layer"]
    assert close(case.output(), by_hand(case, layer))
    assert all_close(case.gradients(), case.gradients(lambda grown: by_hand(grown, layer)))
    other = by_hand(replace(case, inputs=replace(case.inputs, data={"x": case.tensors["x"] * 1.01})), layer)
    assert not close(case.output(), other)


@pytest.mark.parametrize("given", [{"causal": True, "kv_heads": 2}, {"causal": True, "kv_heads": 1, "query_len": 3}])
@pytest.mark.parametrize("mode", MODES)
def test_flops_of_shared_keys_and_of_new_tokens_are_what_torch_counts(given: dict[str, Any], mode: Mode) -> None:
    if mode == "fwd_bwd" and "query_len" in given:
        return
    case = case_of("softmax", **given)
    assert flops_counted(case, mode) == case.cost(mode).reference_flops


def flops_counted(case: Small, mode: Mode) -> int:
    reference = case.form.reference
    cotangent = output_like(reference, case.problem, case.params, case.inputs) if mode == "fwd_bwd" else None
    with FlopCounter() as counter:
        run(reference, case.problem, case.params, case.inputs, cotangent, within=nullcontext())
    return int(counter.total)


@pytest.mark.parametrize("name", ["softmax", "linear_transformer", "mamba2"])
def test_the_last_rows_follow_from_the_state(name: str) -> None:
    whole = case_of(name, causal=True)
    problem, state = replace(whole.problem, query_len=4), whole.form.state
    assert state is not None
    past = {**whole.tensors, "x": whole.tensors["x"][:, :11].clone()}
    new = {**whole.tensors, "x": whole.tensors["x"][:, 11:].clone()}
    y, *_ = _outputs(whole.form.reference(problem, whole.params, **new, **state(problem, whole.params, **past)))
    rows = _outputs(whole.output())[0][:, 11:]
    assert close(y, rows)
    past["x"][:, -1] *= -1
    y, *_ = _outputs(whole.form.reference(problem, whole.params, **new, **state(problem, whole.params, **past)))
    assert not close(y, rows)


def _outputs(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def test_bytes_are_those_counted_by_hand() -> None:
    """Of float64: x, y and the weights; in training x and the weights again, the cotangent, and their gradients. The
    gradients of the scores need the sums of y · ∂y first: x once more.
    """
    case = case_of("softmax")
    x, weights = 2 * 15 * C, 4 * C * C + 8 * C * C + 4 * C
    assert case.cost("fwd").bytes_moved == 8 * (2 * x + weights)
    assert case.cost("fwd_bwd").bytes_moved == 8 * (2 * x + weights + (x + weights) + x + (x + weights) + x)
    for name in ("pool", "kao_qkv"):  # their layers do without x in the backward pass, the block's norm does not
        assert case_of(name, image=True).cost("fwd_bwd").bytes_again >= 0


def test_identity_has_a_block_and_its_cost_is_the_bound() -> None:
    """Two projections and the MLP: 10 C² multiply-adds a token."""
    problem = Problem(64, 512, 8)
    whole = operators()["identity"].load().forms["block"]
    cost = whole.cost(problem, {}, "fwd")
    assert cost.flops == cost.reference_flops == 2 * 64 * 10 * 512**2
    for name in ("softmax", "performer"):
        operator = operators()[name].load()
        assert operator.forms["block"].cost(problem, resolve(operator, {}), "fwd").flops > cost.flops


def test_what_is_kept_for_the_backward_pass() -> None:
    """Of identity's block: x, LN(x), v, h, LN(h), the hidden layer and its GELU, and two numbers a token and norm."""
    problem = Problem(64, C, HEADS, batch=2)
    found = predict(operators()["identity"].load().forms["block"], problem, {}, "fwd_bwd")
    tokens = 2 * 64
    assert found.saved_bytes == 4 * tokens * ((5 + 2 * 4) * C + 2 * 2)


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_operator_has_a_block(name: str) -> None:
    """Finite, of the layer's shape, with its impls, and with the products of an MLP more, which torch counts."""
    operator = sources()[name].load()
    layer, whole = operator.forms["layer"], operator.forms["block"]
    params = resolve(operator, IN_A_LAYER.get(name, {}))
    causal = operator.full is not True
    problem = Problem(15, C, HEADS, causal=causal)
    if "sequence" not in operator.domains:
        problem = Problem.image(3, 5, C, HEADS)
    assert outside_definition(operator, problem, params, "block") is None
    inputs = whole.make_inputs(problem, params, torch.Generator().manual_seed(0))
    assert misfit_of_inputs(inputs, problem, "cpu") is None
    with FlopCounter() as counter:
        output = whole.reference(problem, params, **inputs.tensors())
    assert misfit_of_output(output, problem, "cpu", differentiable=False) is None
    assert output.shape == inputs.data["x"].shape
    assert output.isfinite().all()
    cost, inner = whole.cost(problem, params, "fwd"), layer.cost(problem, params, "fwd")
    assert counter.total == cost.reference_flops - sum(cost.uncounted.values())
    assert set(whole.impls) == set(layer.impls)
    assert (whole.state is None) == (layer.state is None)
    more = 0 if name in HOLD_THEIR_MLP else 2 * 15 * 8 * C * C
    assert cost.flops - inner.flops == cost.reference_flops - inner.reference_flops == more
    for impl in whole.impls.values():
        counts = impl.flops and impl.flops(problem, params, "fwd")
        assert counts is None or counts > more
    names = set(layer.make_inputs(problem, params, torch.Generator().manual_seed(0)).tensors())
    assert set(inputs.tensors()) == names | (set() if name in HOLD_THEIR_MLP else set(OWN))
    assert not names & set(OWN)


def test_what_has_no_block_says_why() -> None:
    softmax = operators()["softmax"].load()
    problem = Problem(8, 8, 2)
    assert outside_definition(softmax, problem, resolve(softmax, {}), "block") is None
    assert "only their order" in str(outside_definition(softmax, Problem(8, 2, 2), resolve(softmax, {}), "block"))
    bare = with_block(replace(softmax, forms={"core": softmax.forms["core"]}))
    assert outside_definition(bare, problem, {}, "block") == "no scope block: it has core"
    added = operators()["global_tokens"].load()
    external, internal = (resolve(added, {"kind": kind}) for kind in ("external", "internal"))
    assert "no x that a block could add" in str(outside_definition(added, problem, external, "block"))
    assert outside_definition(added, problem, external, "layer") is None
    assert outside_definition(added, problem, internal, "block") is None
    reformer = operators()["reformer"].load()  # what its layer excludes
    assert "fixed map" in str(outside_definition(reformer, problem, resolve(reformer, {"hashing": "inside"}), "block"))


def test_a_layer_of_other_data_is_told() -> None:
    core = operators()["softmax"].load().forms["core"]
    with pytest.raises(ValueError, match=r"takes x; this one takes q, k, v\. Name it x"):
        block(core).make_inputs(Problem(4, 8, 2), {"value_map": False}, torch.Generator())


def test_a_block_of_its_own_stays(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from attnbench.operators.exact.softmax import OPERATOR as SOFTMAX\n"
        "from dataclasses import replace\n"
        "OPERATOR = replace(SOFTMAX, forms={**SOFTMAX.forms, 'block': SOFTMAX.forms['layer']})\n",
        encoding="utf-8",
    )
    forms = operators([str(own)])["own"].load().forms
    assert forms["block"] is forms["layer"]


def test_a_graph_is_of_the_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a block, its tensors would be others at every call."""
    captured: list[set[str]] = []

    def see(tensor: Tensor) -> bool:
        captured.append(set())
        return False

    monkeypatch.setattr(graphs, "capturable", see)
    case = case_of("softmax")
    call = case.form.impls[graphs.NAME].load()
    assert isinstance(call, graphs.Replays)
    assert close(call(case.problem, case.params, **case.tensors), case.output())
    assert len(captured) == 1


def test_a_worker_checks_it() -> None:
    for impl in ("reference", "sdpa"):
        checking.check_impl(subject("softmax", impl, "fwd_bwd", scope="block"))


def test_gradients_of_gains_and_shifts_are_added_up_in_more_bits_than_a_half_has() -> None:
    """The control: torch's own norm on a CPU, whose sum over these tokens stands still."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 64, generator=generator).bfloat16()
    ahead = (0.08 + 0.05 * torch.randn(64, generator=generator)).bfloat16().expand_as(x)  # alike for all tokens

    def shift_gradient(norm: Callable[..., Tensor]) -> Tensor:
        gain, shift = (fill(64, dtype=torch.bfloat16).requires_grad_() for fill in (torch.ones, torch.zeros))
        (gradient,) = torch.autograd.grad(norm(x, gain, shift), shift, ahead)
        return gradient.double()

    truth = ahead.double().sum(0)
    error = (shift_gradient(normed) - truth).abs().max() / truth.abs().max()
    torchs = shift_gradient(lambda x, gain, shift: layer_norm(x, gain.shape, gain, shift))
    assert error < 2**-8 < 0.2 < (torchs - truth).abs().max() / truth.abs().max()
