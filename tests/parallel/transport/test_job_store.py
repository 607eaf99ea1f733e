"""The job's store listens where the ranks meet and nowhere else, and values that no rank wrote are refused."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from pipelines.launch.local_ranks import free_port
from tests.ranks import run_on_ranks
from ufork.errors import PeerError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport import job_store
from ufork.parallel.transport.job_store import open_store, signed, verified
from ufork.parallel.transport.stage_world import World, join_world
from ufork.vocabulary import Task

LISTENING = "0A"
LOOPBACK = {"tcp": "0100007F", "tcp6": "00000000000000000000000001000000"}
"""127.0.0.1 and ::1 as /proc/net writes them, in 32-bit words of this machine's order."""


def listening_addresses():
    """Tables and addresses at which this process listens, as /proc/net writes them."""
    links = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    lines = [
        (table, line.split()) for table in LOOPBACK for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    return {
        (table, words[1].partition(":")[0])
        for table, words in lines
        if words[3] == LISTENING and f"socket:[{words[9]}]" in links
    }


def open_bridge(world: World):
    layout = make_layout(LayoutConfig(), num_ranks=2, global_batch_size={task: 2 for task in Task})
    return world.open_bridge(layout, "test")


def listen_and_forge(rank_env: RankEnvironment):
    """Returns the secret, the addresses of sockets, and what rank 0 says of a report that was replaced in the store."""
    with join_world(rank_env, timeout_seconds=20) as world:
        bridge = open_bridge(world)
        found = rank_env.secret, listening_addresses()
        if rank_env.rank == 1:
            bridge._store.set("gather/1/1", '"/tmp/evil"')
            world.store.set("replaced", "")
            world.store.wait(["read"], timedelta(seconds=20))
            return *found, None
        world.store.wait(["replaced"], timedelta(seconds=20))
        with pytest.raises(PeerError) as refused:
            bridge.gather("/runs/a")
        world.store.set("read", "")
        return *found, str(refused.value)


def test_ranks_of_one_machine_listen_on_loopback_only_and_refuse_a_forged_report():
    (secret, first, refused), (other, second, _) = run_on_ranks(listen_and_forge, 2)
    assert secret == other and len(secret) == 64
    assert first and first | second <= set(LOOPBACK.items())
    assert "a value of 'gather/1/1' that no rank of this job wrote" in refused


def listening_at(monkeypatch, host, resolved):
    """Address of rank 0's socket when the name of its host is resolved to `resolved`; None if it has none."""
    port = free_port()
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    listener = job_store._listener(host, port)
    if listener is None:
        return None
    with listener:
        return listener.getsockname()[0]


def test_the_store_listens_at_the_first_address_that_this_machine_has(monkeypatch):
    assert listening_at(monkeypatch, "127.0.0.1", ["192.0.2.1", "127.0.0.1"]) == "127.0.0.1"


@pytest.mark.parametrize("resolved", ["192.0.2.1", "127.0.1.1"])
def test_torch_listens_everywhere_where_no_interface_has_the_address(monkeypatch, resolved):
    assert listening_at(monkeypatch, "node1", [resolved]) is None


def test_a_port_in_use_is_an_error_of_the_store():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address, port = taken.getsockname()
        alone = RankEnvironment(rank=0, world_size=1, local_rank=0, master_address=address, master_port=port)
        with pytest.raises(dist.DistError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_store(alone, timedelta(seconds=1))


def test_an_unknown_host_is_an_error_of_the_store():
    alone = RankEnvironment(rank=0, world_size=1, local_rank=0, master_address="a.invalid", master_port=20_000)
    with pytest.raises(dist.DistError, match="the address of a.invalid is unknown"):
        open_store(alone, timedelta(seconds=1))


def test_a_value_holds_for_its_key_and_secret_only():
    content = signed({"path": "/runs/a", "restart": 2}, "gather/1/0", "secret").encode()
    assert verified(content, "gather/1/0", "secret") == {"path": "/runs/a", "restart": 2}
    for text, key, secret in (
        (content.replace(b"/runs/a", b"/tmp/xx"), "gather/1/0", "secret"),
        (content, "gather/2/0", "secret"),
        (content, "gather/1/0", "other"),
        (b'"/tmp/evil"', "gather/1/0", "secret"),
        (b"", "gather/1/0", "secret"),
        (b"\xff" * 80, "gather/1/0", "secret"),
    ):
        with pytest.raises(PeerError, match="that no rank of this job wrote"):
            verified(text, key, secret)
