"""Which addresses may be dialled."""

from ipaddress import ip_address

import pytest

from webhooks.addresses import literal, may_be_dialled, networks

PRIVATE = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254
    172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
"""
PUBLIC = """
    1.1.1.1 8.8.8.8 93.184.216.34 2606:4700:4700::1111 2a00:1450:4001:800::200e ::ffff:1.1.1.1
    64:ff9b::808:808
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_what_is_not_the_public_internet_is_not_dialled(address: str) -> None:
    assert not may_be_dialled(ip_address(address), allowed=())


@pytest.mark.parametrize("address", PUBLIC.split())
def test_the_public_internet_is_dialled(address: str) -> None:
    assert may_be_dialled(ip_address(address), allowed=())


def test_a_network_of_the_setting_is_dialled_and_its_neighbours_are_not() -> None:
    allowed = networks("10.1.0.0/16, ::1/128")
    assert may_be_dialled(ip_address("10.1.2.3"), allowed=allowed)
    assert may_be_dialled(ip_address("::ffff:10.1.2.3"), allowed=allowed)
    assert may_be_dialled(ip_address("::1"), allowed=allowed)
    assert not may_be_dialled(ip_address("10.2.0.1"), allowed=allowed)
    assert not may_be_dialled(ip_address("127.0.0.1"), allowed=allowed)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("017700000001", "127.0.0.1"),
     ("::1", "::1"), ("10.0.0.1", "10.0.0.1")],
)  # fmt: skip
def test_an_address_is_known_however_it_is_written(host: str, address: str) -> None:
    assert literal(host) == ip_address(address)


def test_a_name_is_no_address() -> None:
    assert literal("example.com") is None
