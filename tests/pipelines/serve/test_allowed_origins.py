"""Whose requests are answered: those of the page itself and of programs, not those of other sites."""

import pytest

from pipelines.serve.allowed_origins import is_own_host, is_own_origin, names_of

LOCAL = names_of("127.0.0.1", ())
OPEN = names_of("0.0.0.0", ["Demo.Example"])


@pytest.mark.parametrize(
    "header", ["localhost", "LOCALHOST:9000", "127.0.0.1:8000", "[::1]:8000", "192.168.0.7", "[fe80::1]"]
)
def test_own_names_and_addresses(header):
    assert is_own_host(header, LOCAL)


@pytest.mark.parametrize(
    "header",
    [None, "", "attacker.example", "attacker.example:8000", "localhost.attacker.example", "localhost@attacker.example"]
    + ["127.0.0.1.attacker.example", "[::1", "demo.example"],
)
def test_names_that_dns_may_point_here_are_not_its_own(header):
    assert not is_own_host(header, LOCAL)


def test_names_that_are_allowed_are_its_own():
    assert is_own_host("demo.EXAMPLE:80", OPEN)


@pytest.mark.parametrize("origin", [None, "http://localhost:8000", "https://LOCALHOST:8000"])
def test_the_page_and_programs(origin):
    assert is_own_origin(origin, "localhost:8000")


@pytest.mark.parametrize(
    "origin", ["null", "", "http://attacker.example", "http://localhost", "http://localhost:80000", "file://"]
)
def test_pages_of_others(origin):
    assert not is_own_origin(origin, "localhost:8000")
