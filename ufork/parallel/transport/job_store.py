"""The job's store: served by rank 0 where the ranks meet, with values that no other program can forge.

    rank 0: address of the rendezvous -> listening socket -> torch's TCPStore; other ranks: a client
    value -> JSON and its HMAC-SHA256 with the job's secret -> store -> checked by every rank that reads it

torch's store takes any value from whoever reaches its port, and by itself it listens on all interfaces. So what ranks
read in it to decide something, such as which checkpoint to resume from, is signed. Counters, and the addresses by which
gloo and NCCL connect, are not: what passes between ranks relies on the cluster's network.
"""

import errno
import hmac
import json
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ufork.errors import PeerError
from ufork.network_address import is_loopback
from ufork.parallel.rank_environment import SECRET_VARIABLE, RankEnvironment

_MAC_DIGITS = 64


def open_store(rank_env: RankEnvironment, timeout: timedelta, *, wait_for_ranks: bool = True) -> dist.TCPStore:
    """Returns the store, which rank 0 serves unless its launcher does.

    Args:
        rank_env: this rank.
        timeout: how long to wait for rank 0, and of calls of the store.
        wait_for_ranks: whether to return only when all ranks are connected.

    Raises:
        DistError: rank 0 cannot listen, or a rank did not connect in time.
    """
    serves = rank_env.rank == 0 and not rank_env.launcher_serves_store
    listener = _listener(rank_env.master_address, rank_env.master_port) if serves else None
    return dist.TCPStore(
        rank_env.master_address,
        rank_env.master_port,
        rank_env.world_size,
        is_master=serves,
        timeout=timeout,
        wait_for_workers=wait_for_ranks,
        master_listen_fd=listener.detach() if listener else None,
    )


def _listener(host: str, port: int) -> socket.socket | None:
    """Returns a socket that listens on the interface that has the address of `host`; None if no interface has it.

    The latter is so behind address translation, and where a machine calls itself 127.0.1.1 (Debian's /etc/hosts) while
    others know it by another address.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise dist.DistNetworkError(f"the address of {host} is unknown: {error.strerror}") from None
    for family, kind, protocol, _, address in addresses:
        if not is_loopback(host) and is_loopback(str(address[0])):
            continue
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(socket.SOMAXCONN)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRNOTAVAIL:
                raise dist.DistNetworkError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return None


def signed(value: Any, key: str, secret: str) -> str:
    """Returns a value of JSON's types as text for the store, with a signature that holds for `key` only."""
    text = json.dumps(value)
    return _mac(text, key, secret) + text


def verified(content: bytes, key: str, secret: str) -> Any:
    """Returns the value of what `signed` returned for the same `key` and `secret`.

    Raises:
        PeerError: it did not.
    """
    text = content.decode(errors="replace")
    mac, text = text[:_MAC_DIGITS], text[_MAC_DIGITS:]
    if not hmac.compare_digest(mac.encode(), _mac(text, key, secret).encode()):
        raise PeerError(
            f"the job's store has a value of {key!r} that no rank of this job wrote: another program writes to it, or"
            f" {SECRET_VARIABLE} is not the same on all ranks"
        )
    return json.loads(text)


def _mac(text: str, key: str, secret: str) -> str:
    return hmac.digest(secret.encode(), f"{key}\0{text}".encode(), "sha256").hex()
