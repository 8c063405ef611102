from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrunner.system.output.redaction import MAX_LINE_LENGTH, RedactingFormatter, Redactor, is_secret_key
from tests.unit.core.curves import PROPERTY

secret_values = st.text(
    alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=5, max_size=30
)


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hub_token",
        "hub.token",
        "hubToken",
        "HF_TOKEN",
        "password",
        "db-password",
        "MLFLOW_TRACKING_PASSWORD",
        "passwd",
        "secret",
        "client_secret",
        "AWS_SECRET_ACCESS_KEY",
        "credential",
        "credentials",
        "googleCredentials",
        "api_key",
        "apiKey",
        "APIKey",
        "API_KEY",
        "x-api-key",
        "OPENAI_API_KEY",
        "access_key",
        "accessKey",
        "AWS_ACCESS_KEY_ID",
        "private_key",
        "PRIVATE_KEY",
        "sshPrivateKey",
    ],
)
def test_key_with_a_whole_secret_word_is_secret(key: str) -> None:
    """The contract's list, in every spelling that configs, Python, JavaScript and environments use."""
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "num_keys",
        "monkey",
        "num_tokens",
        "max_new_tokens",
        "tokenizer",
        "TOKENIZERS_PARALLELISM",
        "secretary",
        "passwordless",
        "key",
        "keys",
        "primary_key",
        "public_key",
        "sort_key",
        "api",
        "api_version",
        "access",
        "private",
        "lr",
        "",
    ],
)
def test_key_without_a_whole_secret_word_is_not_secret(key: str) -> None:
    """A masked num_tokens makes two runs in MLflow look alike that are not."""
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub.token=hunter2", "hub.token=***"),
        ("+hub.token=hunter2", "+hub.token=***"),
        ("++hub.api_key=hunter2", "++hub.api_key=***"),
        ("--token=hunter2", "--token=***"),
        ("HF_TOKEN=hunter2 lrrunner lr=1", "HF_TOKEN=*** lrrunner lr=1"),
        ("hub.token='hunter 2' lr=1", "hub.token=*** lr=1"),
        ('hub.password="hunter 2", lr=1', "hub.password=***, lr=1"),
        ("token = hunter2", "token = ***"),
        ("token: hunter2", "token: ***"),
        ("{hub: {token: hunter2, num_tokens: 5}}", "{hub: {token: ***, num_tokens: 5}}"),
        ("Client(token='hunter2', retries=3)", "Client(token=***, retries=3)"),
        ("lr=1,token=hunter2", "lr=1,token=***"),
        ("lr=1;token=hunter2", "lr=1;token=***"),
    ],
)
def test_assignment_to_a_secret_key_is_masked(text: str, expected: str) -> None:
    """Overrides, environments, reprs and YAML: what stands around the value stays readable."""
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "INFO: token=hunter2",
        "WARNING:root:password=hunter2",
        "error: hub.token=hunter2 is not a configuration key",
        "rank 0: MLFLOW_TRACKING_TOKEN=hunter2",
        "cmd: HF_TOKEN=hunter2 python -m lrrunner",
        "env=HF_TOKEN=hunter2",
        "url=https://host/api?token=hunter2",
        "tracking.uri=https://host/?user=ann&password=hunter2",
        "GET https://host/api?page=1&api_key=hunter2",
    ],
)
def test_secret_assignment_after_another_assignment_is_masked(text: str) -> None:
    """A log prefix, a query string, an option of an option: the outer key is harmless, the inner one is not."""
    assert "hunter2" not in Redactor().text(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"token": "hunter2", "num_tokens": 5}',
        "{'token': 'hunter2', 'num_tokens': 5}",
        '{"hub": {"api_key":"hunter2"}, "num_tokens": 5}',
        "Config(hub={'password': 'hunter2'}, num_tokens=5)",
    ],
)
def test_quoted_key_in_json_or_a_repr_is_masked(text: str) -> None:
    """Tracebacks and error messages print dictionaries; only the secret may go."""
    masked = Redactor().text(text)
    assert "hunter2" not in masked
    assert "5" in masked


@pytest.mark.parametrize(
    "text",
    [
        "hub.secrets=[hunter2,swordfish]",
        "hub.credentials={user:hunter2,pass:swordfish}",
        "+hub.secrets=['hunter2', 'swordfish']",
    ],
)
def test_list_or_mapping_given_to_a_secret_key_is_masked_whole(text: str) -> None:
    """Hydra overrides take lists and mappings; everything below a secret key is secret, as it is in a tree."""
    masked = Redactor().text(text)
    assert "hunter2" not in masked
    assert "swordfish" not in masked


def test_escaped_quote_does_not_end_the_secret() -> None:
    """Hydra escapes quotes with a backslash; the rest of the value is as secret as its beginning."""
    assert "er2" not in Redactor().text(r"hub.token='hunt\'er2' lr=1")


@pytest.mark.parametrize(
    "text",
    [
        "num_keys=5 monkey=banana num_tokens=7",
        "model.tokenizer=bert num_tokens: 7",
        "2 ranks, global batch 64 = 2 ranks x 32 x 1 accumulation step",
        "suggested lr: 1.2e-03   [6.1e-04, 2.4e-03]   verdict: ok",
        "sqlite:///mlflow.db",
        "https://host:5000/#/experiments/1",
        "mail ann@host.org",
        "path/to/file@v2",
        "",
    ],
)
def test_text_without_secrets_is_untouched(text: str) -> None:
    """A redactor that eats ordinary words gets switched off."""
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://ann:hunter2@host:5000/x", "https://***@host:5000/x"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("postgresql://ann:hunter2@db/mlflow", "postgresql://***@db/mlflow"),
        ("mysql+pymysql://ann:hunter2@db/mlflow", "mysql+pymysql://***@db/mlflow"),
        ("tracking.uri=postgresql://ann:hunter2@db/mlflow lr=1", "tracking.uri=postgresql://***@db/mlflow lr=1"),
        ("a http://u:p@h b https://v:q@i c", "a http://***@h b https://***@i c"),
        ("postgresql://ann:hun%40ter2@db/mlflow", "postgresql://***@db/mlflow"),
    ],
)
def test_user_information_of_a_uri_is_masked(uri: str, expected: str) -> None:
    """Tracking URIs carry passwords; host and path must stay, so that people can find the server."""
    assert Redactor().text(uri) == expected


@pytest.mark.parametrize("password", ["hun/ter2", "hun@ter2", "hun'ter2"])
def test_bare_special_character_in_a_database_password_does_not_unmask_it(password: str) -> None:
    """SQLAlchemy takes a bare slash or quote in a store URI, urllib splits at the last @: users have such passwords."""
    assert "ter2" not in Redactor().text(f"postgresql://ann:{password}@db/mlflow")


def test_known_secret_is_masked_wherever_it_appears() -> None:
    """A token that a library prints has no key beside it."""
    assert Redactor(["hunter2"]).text("401 for hunter2 at hunter2/x") == "401 for *** at ***/x"


def test_longer_secret_is_masked_before_its_own_prefix() -> None:
    """The other order would print the rest of the longer one."""
    assert Redactor(["hunter2", "hunter2-admin"]).text("hunter2-admin hunter2") == "*** ***"


@pytest.mark.parametrize("short", ["", "1", "true", "1e-3"])
def test_short_secret_does_not_eat_ordinary_text(short: str) -> None:
    """Masked everywhere, a password of `1` would eat every number; it is masked at its key."""
    text = "lr=1e-3 steps=11 true"
    assert Redactor([short]).text(text) == text


@PROPERTY
@given(value=secret_values)
def test_masking_leaves_nothing_of_a_known_secret_and_is_stable(value: str) -> None:
    """One canary, grepped over every file, is the contract's test; text may pass two sinks."""
    redactor = Redactor([value])
    once = redactor.text(f"a {value} b hub.token={value} 'https://u:{value}@h/' <{value}>")
    assert once == "a *** b hub.token=*** 'https://***@h/' <***>"
    assert redactor.text(once) == once


@PROPERTY
@given(
    value=secret_values, template=st.sampled_from(["token={}", "a=1 password: {}", "x, api_key='{}'", "ftp://u:{}@h"])
)
def test_masking_needs_no_knowledge_of_the_secret(value: str, template: str) -> None:
    """A configuration error is printed before the configuration is known."""
    assert Redactor().text(template.format(value)) == Redactor().text(template.format("hunter2"))


def test_tree_is_masked_below_secret_keys_at_any_depth() -> None:
    """config.yaml is a tree: lists, numbers and nested mappings below a secret key are secret too."""
    tree = {
        "hub": {"token": "hunter2", "num_tokens": 5, "name": "ann"},
        "credentials": {"user": "ann", "pins": [1234, "abc"], "nested": {"any": 1.5}},
        "list": [{"api_key": "k"}, "plain"],
        "num_keys": 3,
        "monkey": "banana",
    }
    assert Redactor().tree(tree) == {
        "hub": {"token": "***", "num_tokens": 5, "name": "ann"},
        "credentials": {"user": "***", "pins": ["***", "***"], "nested": {"any": "***"}},
        "list": [{"api_key": "***"}, "plain"],
        "num_keys": 3,
        "monkey": "banana",
    }


def test_absent_and_boolean_values_stay_visible_below_secret_keys() -> None:
    """`token: null` says that none was given, which people need to see, and `use_token: true` is no token."""
    assert Redactor().tree({"token": None, "use_token": True}) == {"token": None, "use_token": True}


def test_tree_values_are_masked_as_text_too() -> None:
    """An URI or a shell line in a harmless key carries secrets of its own."""
    tree = {"uri": "https://ann:hunter2@host", "command": ["run", "HF_TOKEN=hunter2"], "lr": 0.1, "flag": None}
    assert Redactor().tree(tree) == {
        "uri": "https://***@host",
        "command": ["run", "HF_TOKEN=***"],
        "lr": 0.1,
        "flag": None,
    }


def test_secret_in_a_key_of_a_tree_is_masked() -> None:
    """Flattened or user-named keys may repeat a known value."""
    assert Redactor(["hunter2"]).tree({"run-hunter2": {3: "hunter2"}}) == {"run-***": {3: "***"}}


def test_tree_is_a_copy() -> None:
    """The job still needs its token after its configuration has been printed."""
    tree = {"hub": {"token": "hunter2"}, "list": [{"token": "hunter2"}]}
    Redactor().tree(tree)
    assert tree == {"hub": {"token": "hunter2"}, "list": [{"token": "hunter2"}]}


def test_redactor_for_a_run_knows_the_secrets_of_the_configuration() -> None:
    """A token from config.yaml must not come back in a traceback, nor a numeric one, nor one in a list."""
    config = {"hub": {"token": "hunter2"}, "secrets": ["swordfish", 1234567], "uri": "mysql://ann:let%20me@db/x"}
    redactor = Redactor.for_run(config, {})
    assert redactor.text("hunter2 swordfish 1234567 let%20me") == "*** *** *** ***"
    assert redactor.text("'let me' in") == "'***' in"


def test_redactor_for_a_run_knows_the_secrets_of_the_environment() -> None:
    """Libraries take tokens from the environment and print them; other variables stay readable."""
    environ = {"HF_TOKEN": "hunter2", "HOME": "/home/ann", "DATABASE": "postgresql://ann:swordfish@db/x"}
    redactor = Redactor.for_run({}, environ)
    assert redactor.text("hunter2 /home/ann swordfish") == "*** /home/ann ***"


@pytest.mark.parametrize(
    "override",
    [
        "hub.token=hunter2",
        "+hub.token='hunter2'",
        '++hub.password="hunter2"',
        "hub={token:hunter2,name:x}",
        "tracking.uri=https://ann:hunter2@host",
    ],
)
def test_redactor_for_a_run_knows_the_secrets_of_its_overrides(override: str) -> None:
    """If composition fails there is no configuration yet, only what was typed, and the error quotes it."""
    assert Redactor.for_run({}, {}, [override]).text("cannot use hunter2 here") == "cannot use *** here"


@pytest.mark.parametrize("override", ["hub.secrets=[hunter2,swordfish]", "tracking.uri=https://host/?token=hunter2"])
def test_redactor_for_a_run_knows_secrets_inside_structured_overrides(override: str) -> None:
    """Lists and query strings are overrides as well."""
    assert Redactor.for_run({}, {}, [override]).text("cannot use hunter2 here") == "cannot use *** here"


def test_redactor_for_a_run_takes_no_ordinary_value_for_a_secret() -> None:
    """Masking a model's name in every text would make the note useless."""
    config = {"model": {"_target_": "mine.Network"}, "num_tokens": 123456, "monkey": "banana"}
    text = "mine.Network 123456 banana"
    assert Redactor.for_run(config, {"PATH": "/usr/bin"}, ["model.width=12345"]).text(text) == text


def test_formatter_masks_message_arguments_and_traceback() -> None:
    """ranks/<rank>.log holds tracebacks, whose last line quotes the value that was wrong."""
    formatter = RedactingFormatter("%(levelname)s %(message)s", Redactor(["hunter2"]))
    try:
        raise RuntimeError("bad token hunter2")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "login with %s", ("hunter2",), sys.exc_info())
    text = formatter.format(record)
    assert text.startswith("ERROR login with ***\n")
    assert text.endswith("RuntimeError: bad token ***")
    assert "RuntimeError" in text.splitlines()[-1]


def test_a_password_that_a_sweeper_has_escaped_is_masked() -> None:
    """Hydra's sweeper puts a backslash before each colon; its error messages show the overrides like that."""
    assert (
        Redactor().text(r"tracking.uri=http\://ann\:CAN\:ARY123@host\:5000") == r"tracking.uri=http\://***@host\:5000"
    )
    redactor = Redactor.for_run({}, {}, ["tracking.uri=http://ann:CAN:ARY123@host"])
    assert redactor.text(r"not there: CAN\:ARY123, CAN:ARY123") == "not there: ***, ***"
    redactor = Redactor.for_run({}, {}, [r"tracking.uri=http\://ann\:CAN\:ARY123@host"])
    assert redactor.text("not there: CAN:ARY123") == "not there: ***"


MANY = 1_000_000


@pytest.mark.parametrize(
    "unit",
    [
        *("A1b+/", "a", "=", ":", "'", " ", "token=", "token=[", "token={", "token='", "token=x ", "'token", "x ="),
        *("://", "a://b:c", "a://b@", "a:b@", "://'", "http://u:p@h ", "Bearer ", "Bearer abcdefgh ", "api_key "),
    ],
)
def test_a_long_text_is_masked_in_linear_time(unit: str) -> None:
    """One exception with a tensor or an image in it, as base64, made a run of 42 s take 322 s.

    Where the time grows with the square of the length, each of these takes hours, and the test's own limit ends it.
    """
    text = unit * (MANY // len(unit))
    masked = Redactor(["hunter2"]).text(f"hunter2 token=swordfish\n{text}\nhunter2 token=swordfish")
    assert masked.startswith("*** token=***\n")
    assert masked.endswith("\n*** token=***")


def test_a_very_long_line_of_a_log_loses_its_middle() -> None:
    """Nobody reads ten megabytes of one line, and every rank writes them."""
    record = logging.LogRecord("x", logging.INFO, __file__, 1, f"one\nhunter2{'a' * MANY}z\ntwo", (), None)
    one, long, two = RedactingFormatter("%(message)s", Redactor(["hunter2"])).format(record).split("\n")
    assert (one, two) == ("one", "two")
    assert long.startswith("***aaa")
    assert long.endswith("aaaz")
    assert f"[{MANY + 4 - MAX_LINE_LENGTH} characters left out]" in long
    assert len(long) < MAX_LINE_LENGTH + 50


def test_a_secret_across_the_cut_of_a_long_line_is_masked() -> None:
    """The line is masked before it is cut."""
    start = "a" * (MAX_LINE_LENGTH // 2 - 4)
    record = logging.LogRecord("x", logging.INFO, __file__, 1, f"{start} hunter2hunter2 {'b' * MANY}", (), None)
    text = RedactingFormatter("%(message)s", Redactor(["hunter2hunter2"])).format(record)
    assert text.startswith(f"{start} *** [")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub.token='hunter 2", "hub.token=***"),
        ("hub.secrets=[hunter2, swordfish\nrest", "hub.secrets=***\nrest"),
        ("'hub.token=' is not an override", "'hub.token=' is not an override"),
        ("a=1.2://ann:hunter2@host", "a=1.2://***@host"),
    ],
)
def test_a_value_that_is_not_closed_is_masked_to_the_end_of_its_line(text: str, expected: str) -> None:
    """A message that was cut, or quoted without its end, holds the secret all the same."""
    assert Redactor().text(text) == expected
