"""What a host's name or address says about who can reach it, without asking DNS."""

import ipaddress

LOCALHOST = "localhost"


def is_address(host: str) -> bool:
    """Whether `host` is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` is the machine itself, on any machine: only programs on it reach a server that listens there."""
    return host == LOCALHOST or (is_address(host) and ipaddress.ip_address(host).is_loopback)
