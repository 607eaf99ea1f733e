"""Values from the command line, as argparse's `type`. Imports nothing heavy, so that help appears at once."""

import argparse
import math
import re


def utf8_text(argument: str) -> str:
    """Returns a text argument; as argparse's `type` it makes argparse name the option at fault.

    Raises:
        ArgumentTypeError: its bytes were not UTF-8 (Python passes such bytes on as lone surrogates).
    """
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"not UTF-8 text: {argument!a}, character {error.start + 1}; check the terminal's encoding"
        ) from None
    return argument


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
