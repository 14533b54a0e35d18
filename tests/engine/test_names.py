"""Packed names are strings in their order; hashes find what is equal and nothing else, also where they collide."""

from __future__ import annotations

import os
import random

import pytest

from isicrt.engine import names
from isicrt.engine.names import KeySet, NumberTable, PackedNames, equal_keys, name_key, shared_keys

ODD = [
    "b",
    "",
    "a b.jpg",
    "\u00e9",
    "e\u0301",
    "\ufffd",
    "\U0001f600",
    "\ud7ff\ue000",
    os.fsdecode(b"\xff\n"),
    "B",
    "b",
]


@pytest.fixture(params=["own_hashes", "one_hash_for_all"])
def hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one_hash_for_all":
        monkeypatch.setattr(names, "key_hash", lambda key: 7)


def _packed(*strings: str) -> PackedNames:
    packed = PackedNames()
    for string in strings:
        packed.append(string)
    return packed


def test_packed_names_are_the_strings() -> None:
    packed = _packed(*ODD)
    assert list(packed) == [packed[n] for n in range(len(packed))] == ODD
    packed.extend(_packed("x", "yz"))
    packed.extend(_packed())
    packed.append("end")
    assert list(packed) == [*ODD, "x", "yz", "end"]
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_packed_names_sort_as_strings_do() -> None:
    packed = _packed(*ODD)
    packed.sort()
    assert list(packed) == sorted(set(ODD))
    assert packed[3] == sorted(set(ODD))[3]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("a.png", "A.PNG", True),
        ("\u00e9", "e\u0301", True),
        ("stra\u00dfe", "STRASSE", True),
        ("a", "b", False),
        ("\udcff", "\udcfe", False),
    ],
)
def test_names_that_a_file_system_may_take_for_one(one: str, other: str, equal: bool) -> None:
    assert (name_key(one) == name_key(other)) is equal


@pytest.mark.parametrize(
    ("keys", "groups"),
    [
        ("", []),
        ("a", []),
        ("abc", []),
        ("aa", [[0, 1]]),
        ("abcab", [[0, 3], [1, 4]]),
        ("abba", [[1, 2], [0, 3]]),  # by their second numbers
        ("xaxax", [[0, 2, 4], [1, 3]]),
    ],
)
@pytest.mark.usefixtures("hashes")
def test_equal_keys(keys: str, groups: list[list[int]]) -> None:
    assert equal_keys(iter(keys), keys.__getitem__) == groups


@pytest.mark.parametrize(
    ("keys", "others", "numbers"),
    [("", "ab", []), ("ab", "", []), ("abc", "xyz", []), ("abcb", "xb", [1, 3]), ("ab", "ba", [0, 1])],
)
@pytest.mark.usefixtures("hashes")
def test_shared_keys(keys: str, others: str, numbers: list[int]) -> None:
    assert shared_keys(lambda: iter(keys), lambda: iter(others)) == numbers


def test_what_is_not_in_a_set_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = KeySet(["b", "a", "b"])
    assert found
    assert [found.may_hold(key) for key in "abc"] == [True, True, False]
    assert not KeySet([])
    assert not KeySet([]).may_hold("a")
    monkeypatch.setattr(names, "key_hash", lambda key: 7)
    assert KeySet("a").may_hold("c")


def test_a_table_of_numbers_is_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_LATEST", 5)
    rng = random.Random(0)
    table, expected = NumberTable(), {}
    keys = [0, 2**63 - 1, 2**63, 2**64 - 1, *(rng.getrandbits(64) for _ in range(60))]
    for step in range(1000):
        key, value = rng.choice(keys[: 4 + step // 10]), rng.choice([-1, 1]) * rng.getrandbits(62)
        table[key] = expected[key] = value
        asked = rng.choice(keys)
        assert table.get(asked) == expected.get(asked)
    assert len(table) == len(expected)
    assert {key: table.get(key) for key in expected} == expected
    assert table.get(1) is None
