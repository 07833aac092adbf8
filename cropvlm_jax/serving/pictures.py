# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pictures that requests name: data URLs, and addresses of hosts that are allowed.

Nothing that is read is stored or logged. A picture that cannot be had is an `Unreadable`, whose
message is for the client and holds no pixels.
"""

import asyncio
import base64
import fnmatch
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpcore2

from cropvlm_jax.pixels import host
from cropvlm_jax.serving.addresses import CheckedBackend, Forbidden, Resolve, resolve_public
from cropvlm_jax.serving.faults import Fault
from cropvlm_jax.serving.limits import Limits

S = TypeVar("S")
T = TypeVar("T")

REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
MOVED = (301, 302, 303, 307, 308)
# What is neither a picture nor unknown is refused before it is read.
_PICTURE_TYPE = re.compile(r"(image/[\w.+-]+|(application|binary)/octet-stream|)", re.ASCII)
_HEADERS = (("accept", "image/*"), ("accept-encoding", "identity"), ("user-agent", "cropvlm"))
_ADDRESS = re.compile("[!-~]+")  # printable ASCII without spaces


class Unreadable(Exception):
    """A picture that cannot be looked at; the message says why, to the client."""


class PictureReader:
    """Reads the pictures of requests."""

    def __init__(
        self, limits: Limits, hosts: Iterable[str] = (), resolve: Resolve = resolve_public
    ):
        """Prepares a client that fetches from some hosts.

        Args:
            limits: of sizes and times.
            hosts: from which pictures are fetched, such as "images.example.com" or "*.example.com",
                with ":PORT" where that is not the scheme's.
            resolve: the addresses of a host that may be connected to.
        """
        self._limits = limits
        self._hosts = [name.strip().lower() for name in hosts]
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=64, keepalive_expiry=5.0, network_backend=CheckedBackend(resolve)
        )
        self._threads = ThreadPoolExecutor(os.cpu_count(), "pictures")

    async def __aenter__(self) -> "PictureReader":
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes connections and threads."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[[S], T], argument: S) -> T:
        """Runs a function of a picture in a thread of the reader."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, argument)

    async def file(self, url: str) -> bytes:
        """The bytes of a picture's file, which `check` finds good.

        Args:
            url: as in a request.

        Raises:
            Fault: addresses of this kind are refused, such as `file://`.
            Unreadable: it cannot be had, is no picture, or is too large.
        """
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return await self.run(self._of_data_url, url)
        if scheme not in PORTS:
            raise Fault(
                400,
                "picture_refused",
                "a picture is given as a data: URL or by an http(s):// address; other addresses, "
                "such as file://, are refused",
            )
        try:
            async with asyncio.timeout(self._limits.fetch_s):
                file = await self._fetch(url)
        except (TimeoutError, httpcore2.TimeoutException):
            raise Unreadable(f"not fetched within {self._limits.fetch_s:g} s") from None
        except Forbidden as error:
            raise Unreadable(f"not fetched: {error}") from None
        except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise Unreadable(f"not fetched: {type(error).__name__}: {error}") from None
        await self.check(file)
        return file

    async def check(self, file: bytes) -> None:
        """Checks, from its header, that a file is a picture of a size that is allowed.

        Raises:
            Unreadable: it is not.
        """
        await self.run(self._check, file)

    def _of_data_url(self, url: str) -> bytes:
        """What is in a `data:` URL (RFC 2397)."""
        head, comma, data = url.partition(",")
        kind, *parameters = (each.strip().lower() for each in head[len("data:") :].split(";"))
        if not comma or not _PICTURE_TYPE.fullmatch(kind):
            raise Unreadable(f"a data: URL of the type {kind[:80]!r} is no picture")
        try:
            file = urllib.parse.unquote_to_bytes(data)
            if "base64" in parameters:
                text = b"".join(file.split())
                file = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except ValueError as error:  # of base64; half a surrogate pair, which has no bytes
            raise Unreadable(f"its data: URL is broken: {error}") from None
        self._check_length(len(file))
        self._check(file)
        return file

    def _check_length(self, length: int) -> None:
        if length > self._limits.max_picture_mb * 1e6:
            raise Unreadable(f"its file is larger than {self._limits.max_picture_mb:g} MB")

    def _check(self, file: bytes) -> None:
        try:
            height, width = host.picture_size(file)
        except Exception as error:  # PIL raises nearly anything on a broken file
            raise Unreadable(str(error) or type(error).__name__) from None
        most = self._limits.max_megapixels
        if height * width > most * 1e6:
            raise Unreadable(f"its {width} x {height} px are over the limit of {most:g} megapixels")

    async def _fetch(self, url: str) -> bytes:
        """Gets a file from an allowed host, and follows redirects to such ones."""
        for _ in range(REDIRECTS + 1):
            target = self._checked(url)
            async with self._pool.stream("GET", target, headers=_HEADERS) as response:
                headers = {name.lower(): value for name, value in response.headers}
                location = headers.get(b"location")
                if response.status in MOVED and location:
                    url = _joined(url, location.decode("latin-1"))
                    continue
                return await self._body(response, headers)
        raise Unreadable(f"not fetched: more than {REDIRECTS} redirects")

    def _checked(self, url: str) -> httpcore2.URL:
        """An address, taken apart once, of a host that is allowed."""
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise Unreadable("not fetched: its address is none of http(s)") from None
        name = (parts.hostname or "").rstrip(".")
        if not _ADDRESS.fullmatch(url) or not name or "@" in parts.netloc:
            raise Unreadable("not fetched: its address has parts that it may not have")
        asked = name if port == PORTS[parts.scheme] else f"{name}:{port}"
        if not any(
            (":" in asked) == (":" in pattern) and fnmatch.fnmatchcase(asked, pattern)
            for pattern in self._hosts
        ):
            raise Unreadable(f"not fetched: {asked} is not among --allow_hosts")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return httpcore2.URL(scheme=parts.scheme, host=name, port=port, target=path)

    async def _body(self, response: httpcore2.Response, headers: dict[bytes, bytes]) -> bytes:
        """The file that a server sends, if it is a picture of a size that is allowed."""
        if response.status != 200:
            raise Unreadable(f"not fetched: its server answered {response.status}")
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0]
        if not _PICTURE_TYPE.fullmatch(kind.strip().lower()):
            raise Unreadable(f"not fetched: {kind[:80]!r} is no type of a picture")
        length = headers.get(b"content-length", b"")
        self._check_length(int(length) if length.isdigit() else 0)
        file = bytearray()
        async for part in response.aiter_stream():
            file += part
            self._check_length(len(file))
        return bytes(file)


def _joined(url: str, location: str) -> str:
    """Where a redirect leads."""
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:  # such as http://[
        raise Unreadable("not fetched: it leads to what is no address") from None
