# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Connections to public addresses only: a name is resolved once, and what was checked is used.

A server that fetches what its clients name can be sent to places that only it reaches, such as a
cloud's metadata at 169.254.169.254 (server-side request forgery). The check is therefore where the
connection is made: between it and the connection nothing resolves the name again.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable

import httpcore2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]  # host and port to addresses that are allowed

# NAT64 (RFC 6052, RFC 8215) and "IPv4-compatible" (RFC 4291): the last 32 bits are of IPv4.
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")


class Forbidden(ConnectionError):
    """An address that is not public."""


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, as IANA's registries say.

    IPv6 addresses that carry one of IPv4 are as public as that.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if embedded := _embedded(address):
            return all(map(is_public, embedded))
        if address in _SITE_LOCAL:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address stands for: mapped, 6to4, Teredo, NAT64."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _EMBEDDING):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


async def resolve_public(host: str, port: int) -> list[str]:
    """The addresses of a host.

    Raises:
        Forbidden: one of them is not public.
        OSError: there is no such host.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a part of the name is empty, or longer than 63 letters
        raise OSError(f"{host[:80]} is no name of a host") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        # An address with a zone, such as fe80::1%eth0, is a link's, and is refused as such.
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise Forbidden(f"{host} has the address {address}, which is not public")
    return addresses


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to nothing but the addresses that `resolve` allows.

    Certificates are checked against the name in the URL all the same.
    """

    def __init__(self, resolve: Resolve):
        """Takes the resolver, such as `resolve_public`."""
        self._resolve, self._network = resolve, httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first address of a host that answers; see the base class."""
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in await self._resolve(host, port):
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Refuses: pictures are not behind sockets of this machine."""
        raise Forbidden("sockets of this machine are no addresses of pictures")

    async def sleep(self, seconds: float) -> None:
        """Waits; see the base class."""
        await asyncio.sleep(seconds)
