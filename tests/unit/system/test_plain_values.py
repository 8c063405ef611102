"""A dataclass survives JSON, whatever its fields are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from lrrunner.system.plain_values import field_types, from_plain, to_plain


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float
    colour: Colour = Colour.RED


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    corners: tuple[Point, ...] = ()
    interval: tuple[float, float] | None = None
    origin: Point | None = None
    labels: dict[str, float | None] = field(default_factory=dict)


SHAPE = Shape(name="a", corners=(Point(1.0), Point(0.1 + 0.2)), interval=(0.5, 2.0), labels={"k": None})


def test_every_field_comes_back_with_its_type() -> None:
    """Tuples and enumerations are lists and strings in between; numbers keep every digit."""
    plain = json.loads(json.dumps(to_plain(SHAPE)))
    assert plain["corners"][1] == {"x": 0.30000000000000004, "colour": "red"}
    assert from_plain(Shape, plain) == SHAPE
    assert from_plain(Shape, {"name": "b", "origin": {"x": 3.0}}) == Shape(name="b", origin=Point(3.0))


def test_files_of_other_versions_are_read_as_far_as_possible() -> None:
    """A later version may add a field; a field without a default cannot be guessed."""
    assert from_plain(Point, {"x": 1.0, "new": 2}) == Point(1.0)
    with pytest.raises(TypeError):
        from_plain(Point, {"colour": "red"})
    with pytest.raises(ValueError, match="blue"):
        from_plain(Point, {"x": 1.0, "colour": "blue"})


def test_fields_are_listed_in_their_order() -> None:
    """Columns of a table follow it."""
    assert list(field_types(Point)) == ["x", "colour"]
    assert field_types(Point)["x"] is float
