"""Text from elsewhere, made safe to print."""


def printable(text: str, *, keep: str = "") -> str:
    """Returns `text` with control characters escaped, so that no file can move the cursor or recolour a terminal.

    Args:
        text: any text: names, messages, lines of logs.
        keep: control characters to leave as they are, such as line ends.
    """
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
