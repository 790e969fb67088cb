"""Which network addresses a webhook may be sent to: those of the public internet, and those that a setting allows.

Whoever registers an endpoint chooses where our servers connect to. Without this list that is a way into the private
network and to the metadata services of clouds (OWASP Server-Side Request Forgery Prevention Cheat Sheet).
"""

import ipaddress
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What `is_global` passes, in this or an older Python, though nothing there is a public server.
_REFUSED_NETWORKS: tuple[Network, ...] = (
    # IETF protocol assignments (RFC 6890); a cloud has its metadata service in here.
    IPv4Network("192.0.0.0/24"),
    # The relays of 6to4, given up (RFC 7526), and its addresses, which carry IPv4 addresses inside.
    IPv4Network("192.88.99.0/24"),
    IPv6Network("2002::/16"),
    # The host of a virtual machine at Azure: a public number that is answered from inside only.
    IPv4Network("168.63.129.16/32"),
    # Local NAT64 (RFC 8215), documentation (RFC 9637), segment routing (RFC 9602), site-local (RFC 3879), Teredo.
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("3fff::/20"),
    IPv6Network("5f00::/16"),
    IPv6Network("fec0::/10"),
    IPv6Network("2001::/32"),
)
# RFC 6052: the last 32 bits are an IPv4 address, and the packet goes there.
_NAT64 = IPv6Network("64:ff9b::/96")


def may_be_dialled(address: Address, *, allowed: Sequence[Network]) -> bool:
    """Whether a connection to this address is permitted: it is public, or inside a network of `allowed`.

    An IPv6 address that carries an IPv4 address is judged by that.
    """
    real = _carried(address)
    if any(real in network for network in allowed if network.version == real.version):
        return True
    if real.is_multicast or real.is_reserved or real.is_unspecified or real.is_loopback or real.is_link_local:
        return False
    if any(real in network for network in _REFUSED_NETWORKS if network.version == real.version):
        return False
    return real.is_global


def literal(host: str) -> Address | None:
    """The address that a host names by itself, however it is written (`127.1`, `0x7f000001`), or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # What the resolver of the system also takes for an address (POSIX inet_addr: fewer dots, hexadecimal, octal).
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def networks(text: str) -> tuple[Network, ...]:
    """The networks of a list like `10.1.0.0/16, ::1/128`; raises ValueError, which names the first that is none."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def _carried(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
