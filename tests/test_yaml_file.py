from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.measure.papers import FOLDER
from attnbench.yaml_file import MAX_BYTES, parse, parse_shipped, read_text, scalar

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_scalars_follow_yaml_1_2() -> None:
    data = parse("a: [1, -2, 2.5, 1e3, true, ~, .inf, 0x20, 010, 1:30, no, 2001-01-01, 32x64]", "f")
    assert data["a"] == [1, -2, 2.5, 1000.0, True, None, math.inf, "0x20", "010", "1:30", "no", "2001-01-01", "32x64"]


def test_anchors_work_and_keys_are_text() -> None:
    assert parse("a: &x [1, 2]\nb: *x\n3: c", "f") == {"a": [1, 2], "b": [1, 2], "3": "c"}


def test_shipped_files_are_read_alike_by_libyaml() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml"))[:4]]
    assert [repr(parse_shipped(text, "f")) for text in texts] == [repr(parse(text, "f")) for text in texts]
    assert parse_shipped("a: [1, 010, 1:30, no, !!str 2]", "f") == {"a": [1, "010", "1:30", "no", "2"]}


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [1,\n", "a: 1\na: 2", "- 1", "", BOMB, "[" * 5000, "a: &x {b: 1}\nc: {<<: *x}"]
)
def test_a_mistake_in_a_shipped_file_is_worded_alike(text: str) -> None:
    messages = []
    for read in (parse, parse_shipped):
        with pytest.raises(BadInput) as error:
            read(text, "f")
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1,\n", "line 3, column 1: not valid YAML"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice"),
        ("a: {b: 1, b: 2}", "line 1, column 11: the key 'b' is given twice"),
        ("a: !!python/object/apply:os.system ['true']", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !mine 1", "the tag !mine is not allowed"),
        ("a: !!set {b}", "the tag tag:yaml.org,2002:set"),
        ("a: &x [*x]", "an alias that contains itself"),
        ("a: &x {b: 1}\nc: {<<: *x}", "merge keys"),
        (BOMB, "more than 10000 values"),
        ("[" * 5000, "nested more than 16 deep"),
        ("{a: " * 5000, "nested more than 16 deep"),
        ("- " * 5000 + "a", "nested more than 16 deep"),
        ("a: 1\n---\nb: 2", "another document"),
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("a: *nowhere", "undefined alias"),
        ("a: \x07", "a character that YAML does not allow"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- a", "holds a list"),
        ("softmax", "holds a single value"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!int '1_000'", "'1_000' is no int"),
        ("a: !!int 0o17", "'0o17' is no int"),
        ("a: !!int 010", "'010' is no int"),
        ("a: !!float 1_0.5", "'1_0.5' is no float"),
        ("a: !!float nan", "'nan' is no float"),
        ("a: !!bool banana", "'banana' is no bool"),
        ("a: !!bool yes", "'yes' is no bool"),
        ("a: !!null x", "'x' is no null"),
        ("!!bool banana: 1", "'banana' is no bool"),
        ("!!python/name:os.system x: 1", "the tag tag:yaml.org,2002:python/name:os.system"),
    ],
)  # fmt: skip
def test_what_a_suite_may_not_be_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=r"^f") as caught:
        parse(text, "f")
    assert message in str(caught.value)


def test_tags_that_say_what_is_there_are_allowed() -> None:
    text = "a: [!!int '12', !!float '1.5', !!bool 'true', !!null '', !!str 12]"
    assert parse(text, "f") == {"a": [12, 1.5, True, None, "12"]}


@pytest.mark.parametrize(
    "text",
    ["8", "010", "1e3", "2.5", "true", "no", "~", ".inf", "0x10", "'010'", '"8"', "sqrt(n)", "1:30", "-3", "12 # x"],
)
def test_a_value_of_a_command_line_is_read_as_a_suite_reads_it(text: str) -> None:
    assert repr(scalar(text)) == repr(parse(f"a: {text}", "f")["a"])


@pytest.mark.parametrize(
    "text",
    ["", "[", "[1]", "{", "a: b", "- a", "!!int 3", "!mine 3", "&a 3", "*a", "# x", "--- 3", "@", "\x07", "[" * 10**5],
)
def test_what_is_not_one_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one plain value; allowed: a text, a number, true or false"):
        scalar(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [" + "1, " * 80_000 + "]", "more than 10000 values"),
        ("a:\n" + "- 1\n" * 60_000, "more than 10000 values"),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), "more than 10000 values"),
        ("a: " + "[" * 250_000, "nested more than 16 deep"),
        ("a: " + "!!int " + "1" * 250_000, "is no int"),
    ],
    ids=["flow", "block", "keys", "deep", "digits"],
)
def test_what_is_too_large_is_refused_long_before_it_is_read_whole(text: str, message: str) -> None:
    begun = time.process_time()
    with pytest.raises(BadInput, match=message) as caught:
        parse(text, "f")
    assert time.process_time() - begun < 2  # reading all of the lists took 3 to 4 s
    assert len(str(caught.value)) < 300


def test_an_alias_bomb_costs_no_time() -> None:
    start = time.perf_counter()
    with pytest.raises(BadInput):
        parse(BOMB, "f")
    assert time.perf_counter() - start < 5


def test_a_number_of_many_digits_is_text() -> None:
    assert parse("a: " + "9" * 5000, "f") == {"a": "9" * 5000}


def test_bom_and_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert parse(read_text(path), "f") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nname: caf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        (b"\x7fELF\0\0", "binary file"),
        ("a: 1".encode("utf-16"), "binary file"),
        (b"#" * (MAX_BYTES + 1), "larger than 256 KiB"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_text(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(BadInput, match="larger than"):
        read_text(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        read_text(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is not a file"):
        read_text(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_text(tmp_path / ("x" * 300 + ".yaml"))
