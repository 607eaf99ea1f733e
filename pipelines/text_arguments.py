"""Texts of the command line, and values as argparse's `type`. Imports nothing heavy, so that help appears at once."""

import argparse
import math
import re
from collections.abc import Sequence
from itertools import pairwise

from ufork.errors import ConfigError


def require_text(arguments: Sequence[str]) -> None:
    """Checks that all arguments are text: most end in files or messages that can hold no other bytes.

    Raises:
        ConfigError: names the first whose bytes are not UTF-8 (Python passes such bytes on as lone surrogates).
    """
    for before, argument in pairwise(["", *arguments]):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            option = argument if argument.startswith("--") else before
            name = option.partition("=")[0] if option.startswith("--") else "an argument"
            raise ConfigError(
                f"{name}: not UTF-8 text: {argument!a}, character {error.start + 1}; check the terminal's encoding, or"
                " rename the file"
            ) from None


def whole_number(argument: str) -> int:
    """Returns a number of nodes, ranks or tasks, which may be negative: what it may be depends on the argument.

    Raises:
        ArgumentTypeError: it is no number, or larger than any cluster.
    """
    if not re.fullmatch(r"-?\d{1,9}", argument):
        raise argparse.ArgumentTypeError(f"{argument!a}: expected a whole number of at most 9 digits")
    return int(argument)


def seconds(argument: str) -> float:
    """Returns a time limit.

    Raises:
        ArgumentTypeError: it is no positive number of seconds that a timer takes.
    """
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not 0 < number <= 1e8:
        raise argparse.ArgumentTypeError(f"{argument!a}: expected a number of seconds above 0, at most 1e8")
    return number
