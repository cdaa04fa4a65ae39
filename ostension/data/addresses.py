"""Which network addresses lie on the public internet, and which belong to this machine, its network or its cloud.

A service that fetches what strangers name can be made to read what only it can reach: its own ports, the machines beside
it, the cloud's metadata. So an address is judged after the name was resolved, and every notation that carries an IPv4
address inside an IPv6 one is judged by the address inside. The blocks are listed here and not asked of `ipaddress`, whose
answers changed between Python's versions.

Source: IANA's registries of special-purpose addresses (RFC 6890, RFC 8190), read in November 2026.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLOSED_V4 = [
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network; many systems take 0.0.0.0 for themselves
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # private
        "100.64.0.0/10",  # shared by carriers; a cloud's metadata lies here too
        "127.0.0.0/8",  # this machine
        "169.254.0.0/16",  # link-local, with the metadata of most clouds
        "192.0.0.0/24", "192.88.99.0/24",  # protocol assignments, retired 6to4 relays
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",  # documentation
        "198.18.0.0/15",  # measurements of network devices
        "224.0.0.0/4", "240.0.0.0/4",  # multicast, reserved and broadcast
        "168.63.129.16/32",  # looks public, but is a cloud's own service for its machines
    )
]
# All that is handed out for the public internet; what lies inside without being public is listed next.
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = [
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32", "3fff::/20",  # documentation
        "2002::/16",  # 6to4, retired
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str | Address) -> bool:
    """Whether an address lies on the public internet; an IPv4 address inside an IPv6 one decides for it.

    Raises:
        ValueError: if it is no address.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in block for block in _CLOSED_V4)
    if parsed.scope_id is not None:  # only link-local addresses need a zone
        return False
    if parsed.ipv4_mapped is not None:
        return is_public(parsed.ipv4_mapped)
    inside = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    if parsed in _NAT64:
        return is_public(inside)
    if int(parsed) >> 32 & 0xFDFFFFFF == 0x00005EFE and not is_public(inside):  # ISATAP: an IPv4 address as interface
        return False
    return parsed in _OPEN_V6 and not any(parsed in block for block in _CLOSED_V6)


def lies_in(address: str | Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of `networks`; an IPv4 address mapped into IPv6 counts as itself.

    Raises:
        ValueError: if it is no address.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)
