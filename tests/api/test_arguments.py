"""What is wrong with an argument is told by the argument's name, not by that of an option of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnbench
from attnbench import BadInput
from attnbench.naming import option

REFERENCE = Path(attnbench.__file__).parents[1] / "results" / "reference" / "cpu-quick"
TINY: dict[str, Any] = {"operators": ["softmax"], "sweep": [{"seq_len": [16]}]}


def asked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def chosen(**kwargs: Any) -> Callable[[], Any]:
    return asked(attnbench.choose, "softmax", **{"seq_len": 64, "channels": 64, **kwargs})


MISTAKES: dict[str, Callable[[], Any]] = {
    "dtype": chosen(dtype="f16x"),
    "mode": chosen(mode="trian"),
    "scope": chosen(scope="x"),
    "seq_len": chosen(seq_len="64q"),
    "channels": chosen(head_dim=7),
    "seq_len: missing. Give seq_len 1024 or image_size": asked(attnbench.choose),
    "need": chosen(need="x"),
    "memory": chosen(memory="x"),
    "device": chosen(device="H1000"),
    "run": chosen(device="H100", run=REFERENCE),
    "params kk": chosen(params={"kk": 3}),
    "params =": chosen(params=["k"]),
    "causal =": chosen(causal="yes"),
    "query_len": chosen(query_len=1),
    "layers": asked(attnbench.fit, memory="1GiB", layers=0, channels=64),
    "seq_len and batch": asked(attnbench.fit, memory="1GiB", seq_len=64, batch=3, channels=64),
    "image and seq_len": asked(attnbench.fit, memory="1GiB", seq_len=64, image=True, channels=64),
    "memory: missing": asked(attnbench.fit, channels=64),
    "resume and out": asked(attnbench.run, "quick", out="a", resume="b"),
    "shard": asked(attnbench.run, "quick", shard="9/8"),
    "rounds": asked(attnbench.run, "quick", rounds=0),
    "budget": asked(attnbench.run, "quick", budget="x"),
    "operators": asked(attnbench.run, "quick", operators="softmx"),
    "out": asked(attnbench.run, TINY, out=Path(__file__).parent),
    "resume": asked(attnbench.run, resume=Path(__file__).parent),
    "out ": asked(attnbench.merge, [REFERENCE], Path(__file__).parent),
    "metrics": lambda: attnbench.load(REFERENCE).summary("tme"),
    "baseline": lambda: attnbench.load(REFERENCE).summary(baseline="x"),
    "axis": lambda: attnbench.load(REFERENCE).crossovers(axis="x"),
    "size": lambda: attnbench.load(REFERENCE).plot(size="x"),
}


@pytest.mark.parametrize("named", MISTAKES)
def test_a_mistake_is_told_by_the_arguments_name(named: str) -> None:
    with pytest.raises(BadInput) as caught:
        MISTAKES[named]()
    told = str(caught.value)
    assert named in told
    assert "--" not in told
    assert "command line" not in told
    assert option("seq_len") == "--seq-len", "only while it is asked"
