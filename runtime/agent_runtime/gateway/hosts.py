"""Which hosts a sandbox may reach, and which addresses nobody may: pure text and numbers.

A host is admitted by the name that was asked for, and then each address that the name has must be
one of the public internet. Both are needed: whoever owns a name decides where it points to.
Who asks and connects is `tunnels`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 443
_LAST_PORT: Final = 65535
_LONGEST_NAME: Final = 253

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
"""A name whose last label is one would be taken for an IPv4 address by some resolvers (`127.1`)."""
_AUTHORITY: Final = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})")

_NOT_PUBLIC_4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carriers' own, and some clouds' metadata
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # a cloud's own services, on an address that looks public
            "169.254.0.0/16",  # link-local, and most clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments, and a cloud's metadata
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_PUBLIC_6: Final = IPv6Network("2000::/3")
"""All else is loopback, private, link-local, multicast, or an IPv4 address in disguise (mapped, NAT64)."""
_NOT_PUBLIC_6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which holds an IPv4 address, among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)


class Authority(NamedTuple):
    """A host, in small letters, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def authority(text: str) -> Authority | None:
    """What a CONNECT asks for, or None where it is no name with a port. An address is no name."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    host, port = found["host"].lower(), int(found["port"])
    if not is_name(host) or not 1 <= port <= _LAST_PORT:
        return None
    return Authority(host, port)


def is_name(host: str) -> bool:
    """Whether it is a host's name as the DNS has them, in small letters, and nothing else."""
    named = len(host) <= _LONGEST_NAME and _NAME.fullmatch(host) is not None
    return named and _NUMBER.fullmatch(host.rpartition(".")[2]) is None


def is_admitted(rules: Iterable[str], wanted: Authority) -> bool:
    """Whether one of the rules (`needs.HostRule`) names the host, or all below it, with that port."""
    return any(_names(rule.lower(), wanted) for rule in rules)


def is_public(address: str) -> bool:
    """Whether it is a numeric address of the public internet. Whatever cannot be read is none."""
    try:
        if ":" not in address:
            four = IPv4Address(address)
            return not any(four in network for network in _NOT_PUBLIC_4)
        six = IPv6Address(address)
    except AddressValueError:
        return False
    if six.scope_id is not None or six not in _PUBLIC_6:
        return False
    return not any(six in network for network in _NOT_PUBLIC_6)


def _names(rule: str, wanted: Authority) -> bool:
    name, _, port = rule.partition(":")
    if int(port or DEFAULT_PORT) != wanted.port:
        return False
    if name.startswith("*."):
        return wanted.host.endswith(name[1:]) and len(wanted.host) > len(name[1:])
    return wanted.host == name
