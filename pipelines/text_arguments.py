"""Text from the command line. Imports nothing heavy, so that help appears at once."""

import argparse


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
