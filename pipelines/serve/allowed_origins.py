"""Which requests a browser may have been made to send by another site, and which it may not.

A page of another site can post to a server on this machine: such requests name that site as their Origin. Or its own
name can be made to point to this machine (DNS rebinding): such requests name it as their Host. So the Host has to be a
name of this server, or an address, which needs no DNS; and an Origin has to be the Host.
"""

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from ufork.network_address import LOCALHOST, is_address, is_loopback


def names_of(host: str, allowed_hosts: Iterable[str]) -> frozenset[str]:
    """Returns the names of a server that listens on `host`, lower case."""
    own = [] if is_loopback(host) else [host, socket.gethostname()]
    return frozenset(name.lower() for name in (LOCALHOST, *own, *allowed_hosts))


def is_own_host(header: str | None, names: frozenset[str]) -> bool:
    """Whether a request's Host is one of `names` or an address; its port may be that of a forwarding proxy."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return name in names or is_address(name)


def is_own_origin(header: str | None, host: str) -> bool:
    """Whether a request comes from the page at `host`, or from no page; browsers name the origin of each post."""
    return header is None or header.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
