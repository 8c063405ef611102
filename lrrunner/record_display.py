"""How records are shown: as one line, and as a table of a notebook. Standard library only."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum


class Record:
    """A record whose repr is one line: the fields that differ from their defaults, floats in full."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = ((item.name, getattr(self, item.name)) for item in fields(self) if item.repr)  # type: ignore[arg-type]
        defaults = {item.name: item.default for item in fields(self)}  # type: ignore[arg-type]
        given = ((name, value) for name, value in shown if not _same(value, defaults[name]))
        return f"{type(self).__name__}({', '.join(f'{name}={_text(value)}' for name, value in given)})"


def html_table(rows: Mapping[str, str]) -> str:
    """A table of names and values, escaped.

    >>> html_table({"loss": "<0.1"})
    '<table><tr><th>loss</th><td>&lt;0.1</td></tr></table>'
    """
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _same(value: object, default: object) -> bool:
    """Whether a value is the default, of which NaN is the same as NaN."""
    return value is default or value == default or (value != value and default != default)


def _text(value: object) -> str:
    return str(value) if isinstance(value, StrEnum) else repr(value)
