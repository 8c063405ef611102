"""One redactor for every sink: files, MLflow, logs and printed commands. Standard library only."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"

SECRET_WORDS = frozenset(
    ["token", "password", "passwords", "passwd", "secret", "secrets", "credential", "credentials", "apikey"]
)
KEY_OWNERS = frozenset(("api", "access", "private"))

MIN_LITERAL_LENGTH = 5
"""Shorter secret values are masked at their key only: masked everywhere, a value like `1` would eat every number."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_USER_INFO = re.compile(
    r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*\\?://)                             # Hydra's sweeper writes a colon as \:
    (?P<info>
        [^/\s'"]+                                                           # user, or user:password
      | [^\s:/@'"]* : (?!\d+/) (?:[^\s@'"] | ['"](?![\s,;)\]}]))+           # a password with / ' " in it, no port
    )@""",
    re.VERBOSE,
)
_ASSIGNMENT = re.compile(r"(?P<quote>['\"]?)(?P<key>[\w.+~/@-]*\w)(?P=quote)\s*[=:]\s*")
_VALUE = re.compile(
    r"""'(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | \[[^\]]*\] | \{[^}]*\} | [^\s,;{}\[\]()'"][^\s,;}\])]*""",
    re.VERBOSE,
)
_AUTHORIZATION = re.compile(r"\b(?P<scheme>Basic|Bearer) +[A-Za-z0-9+/=._~-]{8,}")
_ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")
"""What Hydra's sweeper writes with a backslash."""
_ITEM = re.compile(r"[^\s,\[\]{}:'\"]+")


def is_secret_key(key: str) -> bool:
    """Whether a key names a secret by a whole word of it.

    >>> [is_secret_key(k) for k in ("hub_token", "apiKey", "AWS_SECRET_ACCESS_KEY", "num_keys", "monkey", "num_tokens")]
    [True, True, True, False, False, False]
    """
    words = [word.lower() for word in _WORD.findall(key)]
    pairs = itertools.pairwise(words)
    return any(word in SECRET_WORDS for word in words) or any(
        owner in KEY_OWNERS and word in ("key", "keys") for owner, word in pairs
    )


class Redactor:
    """Masks secret values: by their key, as user information of a URI, and wherever a known one appears in a text.

    Args:
        secrets: Known secret values, masked in every text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = {secret for secret in secrets if len(secret) >= MIN_LITERAL_LENGTH and secret != MASK}
        written = long_enough | {_ESCAPED.sub(r"\\\g<0>", secret) for secret in long_enough}
        self._literals = sorted(written, key=len, reverse=True)

    @classmethod
    def for_run(cls, config: Any, environ: Mapping[str, str], overrides: Iterable[str] = ()) -> Redactor:
        """A redactor that knows the secrets of a resolved configuration, of its overrides and of the environment."""
        secrets = list(_secret_values(config))
        secrets += [value for key, value in environ.items() if is_secret_key(key)]
        texts = [*_strings(config), *environ.values(), *overrides]
        for text in texts:
            for match in _USER_INFO.finditer(text):
                password = match["info"].partition(":")[2]
                secrets += [password, unquote(password), _unescaped(password)]
        for override in overrides:
            for start, end in _secret_spans(override):
                value = override[start:end]
                secrets += _ITEM.findall(value) if value[0] in "[{" else [value.strip("'\"")]
        return cls(secrets)

    def text(self, text: str) -> str:
        """The text with every secret masked.

        >>> Redactor().text("hub.token=abc https://ann:pw@host/x num_tokens=5")
        'hub.token=*** https://***@host/x num_tokens=5'
        """
        for literal in self._literals:
            text = text.replace(literal, MASK)
        text = _AUTHORIZATION.sub(lambda m: f"{m['scheme']} {MASK}", text)
        text = _USER_INFO.sub(lambda m: f"{m['scheme']}{MASK}@", text)
        for start, end in reversed(list(_secret_spans(text))):
            text = text[:start] + MASK + text[end:]
        return text

    def tree(self, node: Any, *, secret: bool = False) -> Any:
        """A copy of nested dicts and lists with every secret masked.

        >>> Redactor().tree({"hub": {"token": "abc", "num_tokens": 5}})
        {'hub': {'token': '***', 'num_tokens': 5}}
        """
        if isinstance(node, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: self.tree(
                    value, secret=secret or is_secret_key(str(key))
                )
                for key, value in node.items()
            }
        if isinstance(node, list | tuple):
            return [self.tree(value, secret=secret) for value in node]
        if secret and node is not None and not isinstance(node, bool):
            return MASK
        return self.text(node) if isinstance(node, str) else node


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secret keys stand in a text, in the forms key=value and key: value."""
    position = 0
    while match := _ASSIGNMENT.search(text, position):
        value = _VALUE.match(text, match.end()) if is_secret_key(match["key"]) else None
        position = value.end() if value else match.end()
        if value:
            yield value.span()


class RedactingFormatter(logging.Formatter):
    """Formats a record, traceback included, and masks the secrets in it."""

    def __init__(self, fmt: str, redactor: Redactor) -> None:
        super().__init__(fmt)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The record's text with every secret masked."""
        return self._redactor.text(super().format(record))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node


def _secret_values(node: Any, *, secret: bool = False) -> Iterator[str]:
    """Values below secret keys, as strings."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _secret_values(value, secret=secret or is_secret_key(str(key)))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _secret_values(value, secret=secret)
    elif secret and node is not None and not isinstance(node, bool):
        yield str(node)
