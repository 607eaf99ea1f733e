"""Credentials in the locations of data, such as s3://KEY:SECRET@bucket: used to open it, and recorded nowhere.

    redacted("https://user:password@host/shards?sig=abc") -> "https://user:***@host/shards?sig=***"

A config's `Location` is whole in memory and redacted in JSON, from which records are made: config.yaml, checkpoints,
results, Weights & Biases. Messages are redacted where they are shown or recorded.
"""

import re
from typing import Any

HIDDEN = "***"

_END = r"\s'\"<>"
_SOME = "{0,1000}"
"""Bounded, so that the time for any text grows in proportion to its length."""
_CREDENTIALS = re.compile(
    rf"://(?:"
    # user:password@; of a port (host:80/a@b) nothing is hidden. An unescaped / belongs to the password.
    rf"(?P<user>[^/?#@:{_END}]{_SOME}:)(?!\d+(?:[/?#{_END}]|$))(?:[^/?#{_END}]{_SOME}|[^@{_END}]{_SOME})@"
    # a token in place of a user, which some servers take; elsewhere the name is part of the location (abfs, hdfs)
    rf"|(?:(?<=http://)|(?<=https://))[^/?#@:{_END}]{_SOME}@)",
    re.IGNORECASE,
)
_URL = re.compile(rf"://[^{_END}]*")
_VALUE = re.compile(r"([?&][^=&#]+=)[^&#]+")


def redacted(text: str) -> str:
    """Returns `text` with passwords, tokens and the values of queries in its URLs replaced by ***."""
    if "://" not in text:
        return text
    text = _CREDENTIALS.sub(lambda found: f"://{found['user'] or ''}{HIDDEN}@", text)
    return _URL.sub(lambda found: _VALUE.sub(rf"\1{HIDDEN}", found[0]), text)


def has_credentials(text: str) -> bool:
    """Whether a URL in `text` has a password or token in front of its host."""
    return _CREDENTIALS.search(text) is not None


def redacted_values(value: Any) -> Any:
    """Returns a value of JSON's types with every text in it redacted."""
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value
