"""Who can reach a host, by its name or address."""

import pytest

from ufork.network_address import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_only(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""])
def test_reached_from_elsewhere(host):
    assert not is_loopback(host)
