"""Mutated suites."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from tests.mutated.mutation import Expected, Mutation, scratched, spoil

FULL = """
name: full
description: everything a suite can say, é
baseline: softmax
operators: [softmax, {linformer: {k: [16, 32], sharing: kv}}, local]
impls: [reference, sdpa]
scope: [core]
sweep:
  - seq_len: {from: 64, to: 300, factor: 2}
    channels: [32, 64]
  - image_size: [7, 4x8]
  - {seq_len: [512, 1K], query_len: [1, 16], kv_heads: 2, pair: true, causal: true}
  - {seq_len: [8, 16], tokens: 64, dtype: [fp32, bf16]}
problem: {batch: 2, heads: 4, channels: 32, dtype: float32}
mode: [fwd, fwd_bwd]
measure: {rounds: 2, max_rounds: 4, crossover_precision: 3%, min_turns: 4, max_turns: 9, max_time: 500ms}
limits: {memory: 2GiB, cell_timeout: 2m, budget: 1h}
gate:
  wall_time: 5%
  overrides: [{operator: loc*, mode: fwd, wall_time: 10%}]
"""


def mutated_suite(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    """A suite's bytes. bait: a file that no suite may bring into being."""
    make = draw.choice(_SUITES)
    return make(draw, bait)


def _suite_text(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    data = scratched(FULL.encode(), draw)
    return data, Mutation("scratched text", "honest")


def _suite_data(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    data = yaml.safe_load(FULL)
    for _ in range(draw.randint(1, 3)):
        spoil(data, draw)
    return yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"), Mutation("evil values", "honest")


def _suite_lines(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    """Lines dropped, repeated, exchanged, indented, or with a piece of YAML in place of a value or a word."""
    lines = FULL.splitlines()
    for _ in range(draw.randint(1, 3)):
        at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        words = lines[at].split(" ")
        words[draw.randrange(len(words))] = draw.choice(_YAML)
        changes = {
            "drop": lambda at=at: lines.pop(at),
            "repeat": lambda at=at, other=other: lines.insert(at, lines[other]),
            "exchange": lambda at=at, other=other: lines.__setitem__(slice(at, at + 1), [lines[other]]),
            "indent": lambda at=at: lines.__setitem__(at, draw.choice((" ", "    ", "\t")) + lines[at]),
            "value": lambda at=at: lines.__setitem__(at, f"{lines[at].split(':')[0]}: {draw.choice(_YAML)}"),
            "word": lambda at=at, words=words: lines.__setitem__(at, " ".join(words)),
        }
        changes[draw.choice(list(changes))]()
    return "\n".join(lines).encode(), Mutation("other lines", "honest")


_YAML = (
    "", "null", "~", "true", "-1", "0", "1e400", "9" * 400, ".nan", ".inf", "0x10", "1_000", "2001-01-01", "[]", "{}",
    "[[[]]]", "{a: {b: c}}", "'", '"', "é", "\u202e", "%", "100000%", "-5%", "1s1s", "5m ", "*nowhere", "&a [*a]",
    "<<: *x", "{<<: {a: 1}}", "? [a, b]", "|", ">-", "@", "`", "\t", "- -", ": :", "#", "..", "---",
)  # fmt: skip


def _suite_random(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    if draw.random() < 0.5:
        return draw.randbytes(draw.randint(1, 4096)), Mutation("random bytes", "refused")
    return FULL.encode() * draw.randint(2, 4), Mutation("given twice", "refused")


def _suite_bomb(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    width, depth = draw.randint(6, 12), draw.randint(7, 12)
    if draw.random() < 0.5:
        rows = [f"a0: &a0 [{', '.join('x' * width)}]"]
        rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    else:
        rows = ["a0: &a0 {k: v}"]
        rows += [f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(width))}}}" for i in range(1, depth)]
    return ("\n".join(rows) + FULL).encode(), Mutation("exploding aliases", "refused")


def _suite_tag(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    evil = draw.choice(
        (
            f"!!python/object/apply:os.system ['touch {bait}']",
            f"!!python/object/apply:subprocess.check_output [['touch', '{bait}']]",
            f"!!python/object/new:type {{args: ['x', !!python/tuple [], {{}}], state: {{a: '{bait}'}}}}",
            "!!python/name:os.system ''",
            "!!python/module:os ''",
            "!mine {a: 1}",
            "!!binary aGVsbG8=",
            "!!set {a, b}",
            "!!timestamp 2001-01-01",
        )
    )
    key = draw.choice(("name", "description", "baseline", "operators", "sweep", "limits", "other"))
    kept = "\n".join(line for line in FULL.splitlines() if not line.startswith(key + ":"))
    return f"{key}: {evil}\n{kept}\n".encode(), Mutation("a tag that constructs", "refused")


def _suite_deep(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    depth = draw.choice((17, 40, 1000, 20_000))
    opening, closing = draw.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")))
    nested = opening * depth + "x" + closing * draw.choice((0, depth))
    return f"name: full\nsweep:\n  {nested}\n".encode()[: 250 * 1024], Mutation("deep nesting", "refused")


def _suite_large(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    filler = draw.choice((b"# padding\n", b"\n", b" ", b"a: 1\n", b"\0"))
    size = draw.choice((*[300_000] * 5, *[2_000_000] * 4, 100 * 2**20))
    return FULL.encode() + filler * (size // len(filler)), Mutation("large file", "refused")


def _suite_encoded(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    name, expected = draw.choice(_ENCODINGS)
    return encoded(FULL, name), Mutation(name, expected)


_ENCODINGS: tuple[tuple[str, Expected], ...] = (
    ("latin-1", "refused"), ("utf-16", "refused"), ("utf-32", "refused"), ("cp1252", "refused"),
    ("BOM", "same"), ("CRLF", "same"), ("BOM and CRLF", "same"), ("CR", "honest"), ("utf-7", "honest"),
)  # fmt: skip


def encoded(text: str, name: str) -> bytes:
    if "BOM" in name or "CR" in name:
        ends = "\r\n" if "CRLF" in name else "\r" if name == "CR" else "\n"
        return b"\xef\xbb\xbf" * ("BOM" in name) + text.replace("\n", ends).encode()
    return text.encode(name)


def _suite_harmless(draw: random.Random, bait: Path) -> tuple[bytes, Mutation]:
    data = yaml.safe_load(FULL)
    keys = list(data)
    draw.shuffle(keys)
    text = yaml.safe_dump({key: data[key] for key in keys}, sort_keys=False, allow_unicode=True, width=10_000)
    lines = [line + draw.choice(("", "", "  # a comment", "   ")) for line in text.splitlines()]
    lines.insert(0, draw.choice(("", "---", "# first", "%YAML 1.2\n---")))
    return ("\n".join(lines) + "\n").encode(), Mutation("other order and comments", "same")


_SUITES = (
    *[_suite_text] * 5, *[_suite_data] * 6, *[_suite_lines] * 4,
    _suite_random, _suite_bomb, _suite_tag, _suite_deep, _suite_large, _suite_encoded, _suite_harmless,
)  # fmt: skip
