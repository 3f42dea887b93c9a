from __future__ import annotations

import pytest

from attnbench.analysis.answer import Answer, Row, answer
from attnbench.analysis.run import Run
from attnbench.analysis.summary import SORTS, summarise
from attnbench.errors import BadInput
from tests.analysis.runs import Law, cell, laws, run_of, sequence, visits_of

SIZES = (128, 256, 512, 1024)
LAWS: dict[str, Law] = {
    "identity": lambda n: 1e-9,
    "softmax": lambda n: 1e-6 * n**2,
    "softmax:sdpa": lambda n: 5e-7 * n**2,
    "performer": lambda n: 3e-4 * n,
    "local": lambda n: 2e-4 * n,
    "fnet": lambda n: 1e-5 * n,
}


def properties(**of: tuple[str, ...]) -> dict[str, dict[str, dict[str, bool]]]:
    """By operator, what it lacks of three properties."""
    names = ("all_pairs", "data_dependent", "decode")
    return {f"{name} {{}}": {"full": {each: each not in lacks for each in names}} for name, lacks in of.items()}


PROPERTIES = properties(softmax=(), performer=(), local=("all_pairs",), fnet=("data_dependent", "decode"))


def run(rows: dict[str, Law] = LAWS, sizes: tuple[int, ...] = SIZES, **model: object) -> Run:
    found = laws(sizes, rows, own=0.002, process=0.01, **model)
    found.environment.update(exact=["softmax {}"], properties=PROPERTIES)
    return found


def rows(found: Answer) -> dict[str, Row]:
    (table,) = found.tables
    return {row.name: row for row in table.rows}


def test_the_verdict_names_what_passes_first_and_what_passes_of_those_that_are_like_attention() -> None:
    (verdict,) = answer(summarise(run())).verdicts
    assert verdict.sizes == ("128", "1024")
    assert verdict.against_baseline is not None
    assert (verdict.against_baseline.outcome, verdict.against_baseline.series) == ("passed", "fnet")
    assert verdict.against_baseline.start is not None
    assert verdict.against_baseline.start.every
    assert verdict.like_attention is not None
    softmax, exact = verdict.like_attention
    assert softmax is not None
    assert exact is not None
    assert (softmax.series, exact.series) == ("performer", "performer")
    assert softmax.start is not None
    assert exact.start is not None
    assert (softmax.start.at, exact.start.at) == (pytest.approx(300, rel=0.05), pytest.approx(600, rel=0.05))


def test_without_known_properties_none_are_claimed() -> None:
    unknown = run()
    del unknown.environment["properties"]
    found = answer(summarise(unknown))
    assert found.verdicts[0].like_attention is None
    assert not any(row.lacks for row in rows(found).values())
    assert rows(answer(summarise(run())))["fnet"].lacks == ("decode", "data_dependent")


def test_rows_are_ordered_by_what_a_user_would_take() -> None:
    assert list(rows(answer(summarise(run())))) == ["softmax", "softmax:sdpa", "fnet", "local", "performer"]
    early = {**LAWS, "early": lambda n: 4.4e-7 * n**2, "late": lambda n: 4e-4 * n}
    assert list(rows(answer(summarise(run(early)))))[2:] == ["fnet", "local", "performer", "early", "late"]


def test_exact_softmax_comes_first_of_the_others_where_it_is_level_with_the_cheapest() -> None:
    level = {
        "softmax": LAWS["softmax"],
        "softmax:sdpa": LAWS["fnet"],
        "softmax:cuda": LAWS["fnet"],
        "fnet": LAWS["fnet"],
    }
    names = list(rows(answer(summarise(run(level)))))
    assert names[3:] == ["fnet"]
    assert {*names[1:3]} == {"softmax:sdpa", "softmax:cuda"}
    dearer = {**level, "softmax:cuda": LAWS["softmax"]}
    assert list(rows(answer(summarise(run(dearer)))))[2:] == ["fnet", "softmax:cuda"]


MEMORY = {"fnet": 3000, "local": 1000, "performer": 2000}


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("use", ["fnet", "performer", "local"]),
        ("name", ["fnet", "local", "performer"]),
        ("from", ["fnet", "local", "performer"]),
        ("ratio", ["performer", "fnet", "local"]),
        ("memory", ["local", "performer", "fnet"]),
    ],
)
def test_another_order_can_be_asked_for(sort: str, names: list[str]) -> None:
    """fnet is cheaper at every size, local from 370 and performer from 480 on, where it soon is the cheapest."""
    laws: dict[str, Law] = {
        "softmax": lambda n: 1e-6 * n**2,
        "softmax:sdpa": lambda n: 9e-7 * n**2,
        "fnet": lambda n: 1e-7 * n**2,
        "local": lambda n: 3e-4 * n,
        "performer": lambda n: 5e-1 if n < 1024 else 1e-2 * n / 1024,
    }
    cells = []
    for name, law in laws.items():
        operator, _, impl = name.partition(":")
        metrics = {"peak_memory_bytes": MEMORY.get(operator, 5000)}
        cells += [(cell(operator, sequence(n), impl or "reference"), float(law(n)), metrics) for n in (*SIZES, 2048)]
    made = run_of(visits_of(cells, own=0.002, process=0.01), {"exact": ["softmax {}"]})
    assert sort in SORTS
    found = list(rows(answer(summarise(made, sort=sort))))
    assert found[:2] == ["softmax", "softmax:sdpa"]
    assert found[2:] == names


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--sort 'memry' \(did you mean 'memory'\?\); allowed: use, "):
        summarise(run(), sort="memry")


def test_of_an_operators_series_the_best_stands_among_the_others_and_one_that_is_known_before_one_that_is_not() -> None:
    several: dict[str, Law] = {
        **{name: LAWS[name] for name in ("softmax", "softmax:sdpa")},
        "local": lambda n: 2e-4 * n,
        "local:cuda": lambda n: 1e-5 * n,
        "local:cuda:graph": lambda n: 1e-6 * n,
        "performer": lambda n: 3e-4 * n,
    }
    skipped = {("local:cuda:graph", 1024): "skipped"}
    assert list(rows(answer(summarise(run(several, statuses=skipped)))))[2:] == [
        *("local:cuda", "performer"),
        *("local:cuda:graph", "local"),
    ]


def test_a_series_that_ran_at_some_sizes_alone_does_not_speak_for_all() -> None:
    partly: dict[str, Law] = {"softmax": LAWS["softmax"], "fnet": LAWS["fnet"], "local": lambda n: 3e-4 * n}
    statuses = {("fnet", 128): "skipped"}
    (verdict,) = answer(summarise(run(partly, statuses=statuses))).verdicts
    assert verdict.against_baseline is not None
    assert verdict.against_baseline.start is not None
    assert (verdict.against_baseline.series, verdict.against_baseline.start.every) == ("fnet", False)
    assert verdict.against_baseline.start.by == 256


def test_the_largest_size_is_one_at_which_half_of_the_series_ran() -> None:
    beyond = {(name, 1024): "skipped" for name in ("softmax", "softmax:sdpa", "local", "performer")}
    (table,) = answer(summarise(run(statuses=beyond))).tables
    assert table.largest == {"fwd": "512"}
    (table,) = answer(summarise(run(statuses={("softmax", 1024): "oom"}))).tables
    assert table.largest == {"fwd": "1024"}
    assert table.rows[0].standings["fwd"].status == "oom"


@pytest.mark.parametrize(("status", "exact"), [("wrong", False), ("oom", True)])
def test_an_impl_that_is_wrong_somewhere_is_not_called_exact(status: str, exact: bool) -> None:
    found = answer(summarise(run(statuses={("softmax:sdpa", 1024): status})))
    assert rows(found)["softmax"].exact
    assert rows(found)["softmax:sdpa"].exact is exact


def test_a_baseline_out_of_memory_says_nothing_of_smaller_sizes_that_no_time_was_left_for() -> None:
    untried = {(name, n): "skipped" for name in LAWS for n in SIZES[:-1]}
    exact = {(name, SIZES[-1]): "oom" for name in ("softmax", "softmax:sdpa")}
    (verdict,) = answer(summarise(run(statuses=untried | exact))).verdicts
    assert verdict.against_baseline is not None
    assert verdict.against_baseline.start is not None
    assert (verdict.against_baseline.start.by, verdict.against_baseline.start.every) == (SIZES[-1], False)


def test_without_a_baseline_ratios_are_to_the_best_exact_softmax() -> None:
    others = {name: law for name, law in LAWS.items() if name != "softmax"}
    found = rows(answer(summarise(run(others))))
    assert found["softmax:sdpa"].standings["fwd"].ratio is None
    assert found["fnet"].standings["fwd"].ratio == pytest.approx(1e-5 / (5e-7 * 1024), rel=0.05)
