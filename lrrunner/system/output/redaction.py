"""One redactor for every sink: files, MLflow, logs and printed commands. Standard library only."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"

SECRET_WORDS = frozenset(
    ["token", "password", "passwords", "passwd", "secret", "secrets", "credential", "credentials", "apikey"]
)
KEY_OWNERS = frozenset(("api", "access", "private"))

MIN_LITERAL_LENGTH = 5
"""Shorter secret values are masked at their key only: masked everywhere, a value like `1` would eat every number."""

MAX_LINE_LENGTH = 1 << 14
"""Longer lines of a log lose their middle, after they have been masked: half a secret would not be recognised."""

# The time of each search below is proportional to the length of the text, whatever is in it: no character can begin
# more than a few matches that fail late. A rank that logs an exception of 10 MB must not seem to hang.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_AUTHORITY = re.compile(r"(?<=[A-Za-z0-9+.-])\\?://")  # Hydra's sweeper writes a colon as \:
_AT = re.compile("@")
_NOT_USER_INFO = re.compile(r"[/\s'\"]")
_USER = re.compile(r"[^\s:/@'\"]*+:(?!\d++/)")
"""Before a password with / ' " in it; no host, which a port and a path follow."""
_NOT_PASSWORD = re.compile(r"\s|['\"](?=[\s,;)\]}])")
_ASSIGNMENT = re.compile(
    r"(?P<quote>['\"]?)(?<![\w.+~/@-])(?P<key>[\w.+~/@-]++)(?<=\w)(?P=quote)\s*+[=:]\s*+",
)
_QUOTED = {quote: re.compile(rf"{quote}(?:\\[\s\S]|[^{quote}\\])*+{quote}") for quote in "'\""}
_CLOSING = {"[": "]", "{": "}"}
_PLAIN_VALUE = re.compile(r"[^\s,;{}\[\]()'\"][^\s,;}\])]*+")
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
            for start, end in _user_infos(text):
                password = text[start:end].partition(":")[2]
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
        text = _masked(text, _user_infos(text))
        return _masked(text, _secret_spans(text))

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


def shortened(text: str, max_length: int) -> str:
    """The text without its middle, if it is too long; mask it first.

    >>> shortened("a" * 300 + "b" * 300, 100)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa [500 characters left out] \
bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
    """
    if len(text) <= max_length:
        return text
    half = max_length // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def _masked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with a mask in place of each span; spans ascend and do not overlap."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [text[position:start], MASK]
        position = end
    return "".join([*pieces, text[position:]])


def _user_infos(text: str) -> Iterator[tuple[int, int]]:
    """Where the user information of URIs stands: a user, or user:password."""
    next_at, next_blank = _next_match(_AT, text), _next_match(_NOT_PASSWORD, text)
    position = 0
    for authority in _AUTHORITY.finditer(text):
        start = authority.end()
        if start < position:
            continue
        blank = _NOT_USER_INFO.search(text, start)
        end = text.rfind("@", start + 1, blank.start() if blank else len(text))
        if end < 0 and (user := _USER.match(text, start)) and user.end() < (at := next_at(user.end())) < len(text):
            end = at if at < next_blank(user.end()) else -1
        if end >= 0:
            yield start, end
            position = end


def _next_match(pattern: re.Pattern[str], text: str) -> Callable[[int], int]:
    """A function of ascending positions: where the next match begins, or the length of the text."""
    found = -1

    def at_or_after(position: int) -> int:
        nonlocal found
        if found < position:
            match = pattern.search(text, position)
            found = match.start() if match else len(text)
        return found

    return at_or_after


def _secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secret keys stand in a text, in the forms key=value and key: value."""
    last_closing = {closing: text.rfind(closing) for closing in _CLOSING.values()}
    position = 0
    while match := _ASSIGNMENT.search(text, position):
        start = position = match.end()
        if is_secret_key(match["key"]):
            position = _value_end(text, start, last_closing)
        if position > start:
            yield start, position


def _value_end(text: str, start: int, last_closing: Mapping[str, int]) -> int:
    """Where a value ends; what is not closed ends with its line."""
    opening = text[start : start + 1]
    if opening in _CLOSING and start < last_closing[_CLOSING[opening]]:
        return text.index(_CLOSING[opening], start) + 1
    pattern = _QUOTED.get(opening, _PLAIN_VALUE)
    if value := pattern.match(text, start):
        return value.end()
    if opening in _CLOSING or (opening in _QUOTED and not _NOT_PASSWORD.match(text, start)):
        line_end = text.find("\n", start)
        return len(text) if line_end < 0 else line_end
    return start


class RedactingFormatter(logging.Formatter):
    """Formats a record, traceback included, and masks the secrets in it."""

    def __init__(self, fmt: str, redactor: Redactor) -> None:
        super().__init__(fmt)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The record's text with every secret masked, and without the middle of very long lines."""
        text = self._redactor.text(super().format(record))
        return "\n".join(shortened(line, MAX_LINE_LENGTH) for line in text.split("\n"))


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
