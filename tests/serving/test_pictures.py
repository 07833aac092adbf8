# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures by address: what is fetched, and that nothing private ever is."""

import asyncio
import http.server
import ipaddress
import threading
import time

import pytest
from served import QUESTION, ask, file_of, picture_part, serving, turn

from cropvlm_jax.serving import addresses
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.pictures import PictureReader, Unreadable

NAME = "pictures.example"  # which the tests alone can resolve
LIMITS = Limits(max_picture_mb=0.1, fetch_s=0.5)


class Files(http.server.BaseHTTPRequestHandler):
    """Gives pictures, and what only looks like one, by path."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, dict]] = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            return self.send(302, b"", {"Location": rest.replace("PORT", str(self.port()))})
        if kind == "loop":
            return self.send(302, b"", {"Location": "loop"})
        if kind == "slow":
            time.sleep(1)
        if kind == "large":
            return self.send(200, bytes(200_000), {"Content-Type": "image/png"})
        if kind == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(bytes(10_000))
            finally:
                self.close_connection = True
            return None
        if kind == "gone":
            return self.send(404, b"", {})
        types = {"html": "text/html", "untold": "", "stream": "application/octet-stream"}
        return self.send(200, file_of(), {"Content-Type": types.get(kind, "image/png")})

    def port(self) -> int:
        return self.server.server_port

    def send(self, status: int, data: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def port():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


async def resolve(host: str, port: int) -> list[str]:
    """As in production, but for one name, which has a loopback address here."""
    return ["127.0.0.1"] if host == NAME else await addresses.resolve_public(host, port)


def fetch(url: str, *hosts: str, resolve=resolve) -> bytes:
    async def read() -> bytes:
        async with PictureReader(LIMITS, hosts, resolve) as reader:
            return await reader.file(url)

    return asyncio.run(read())


@pytest.mark.parametrize("kind", ["png", "untold", "stream", "to//png", "to//to//png"])
def test_a_picture_of_an_allowed_host_is_fetched(port, kind):
    assert fetch(f"http://{NAME}:{port}/{kind}", f"{NAME}:{port}") == file_of()
    sent = {name.lower() for name in Files.asked[-1][1]}
    assert sent <= {"host", "accept", "accept-encoding", "user-agent", "connection"}


@pytest.mark.parametrize("hosts", ["PICTURES.example:{}", "*.example:{}"])
def test_patterns_of_hosts(port, hosts):
    assert fetch(f"HTTP://Pictures.Example:{port}/png", hosts.format(port)) == file_of()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://{name}/png", "is not among --allow_hosts"),  # another port
        ("http://{name}:{port}.evil.example/png", "is none of http"),
        ("http://{name}:{port}@evil.example/png", "parts that it may not have"),
        ("http://evil.example#@{name}:{port}/", "evil.example is not among"),
        ("http://evil.example\\@{name}:{port}/", "parts that it may not have"),
        ("http://evil{name}:{port}/png", "is not among --allow_hosts"),
        ("http://{name}:{port}/a b", "parts that it may not have"),
        ("http://{name}:{port}/\r\nx-evil: 1", "parts that it may not have"),
        ("http:///png", "parts that it may not have"),
        ("http://{name}:99999/png", "is none of http"),
        ("http://[::1/png", "is none of http"),
        ("http://{name}:{port}/gone", "its server answered 404"),
        ("http://{name}:{port}/html", "'text/html' is no type of a picture"),
        ("http://{name}:{port}/large", "its file is larger than 0.1 MB"),
        ("http://{name}:{port}/endless", "its file is larger than 0.1 MB"),
        ("http://{name}:{port}/slow", "not fetched within 0.5 s"),
        ("http://{name}:{port}/loop", "more than 3 redirects"),
        ("http://{name}:{port}/to/http://[", "leads to what is no address"),
        ("http://{name}:{port}/to/file:///etc/passwd", "is none of http"),
        ("http://{name}:{port}/to/http://localhost:PORT/png", "which is not public"),
        ("http://{name}:{port}/to/http://127.0.0.1:PORT/png", "is not among --allow_hosts"),
        ("http://{name}:{port}/to/http://169.254.169.254/latest", "is not among --allow_hosts"),
        ("http://localhost:{port}/png", "localhost has the address"),
        ("http://0.0.0.0:{port}/png", "0.0.0.0 has the address 0.0.0.0, which is not public"),
        ("http://2130706433:{port}/png", "127.0.0.1, which is not public"),
        ("http://0x7f.1:{port}/png", "127.0.0.1, which is not public"),
        ("http://[::ffff:127.0.0.1]:{port}/png", "which is not public"),
        ("http://a..wild.example/png", "is no name of a host"),
        (f"http://{'a' * 64}.wild.example/png", "is no name of a host"),
        ("https://{name}:{port}/png", "not fetched: "),  # there is no TLS
    ],
)
def test_what_is_not_fetched(port, address, told):
    numbers = ("0.0.0.0", "2130706433", "0x7f.1", "localhost", "::ffff:127.0.0.1")
    hosts = ["*.wild.example", *(f"{host}:{port}" for host in (NAME, *numbers))]
    with pytest.raises(Unreadable, match=told.replace(".", "[.]")):
        fetch(address.format(name=NAME, port=port), *hosts)


def test_a_name_is_resolved_once_and_its_checked_address_is_used(port):
    """A name that has another address when it is asked again (DNS rebinding) gains nothing."""
    answers = iter([["127.0.0.1"], ["192.0.2.1"]])

    async def changing(host: str, port: int) -> list[str]:
        return next(answers)

    assert fetch(f"http://{NAME}:{port}/png", f"{NAME}:{port}", resolve=changing) == file_of()
    assert next(answers) == ["192.0.2.1"]  # nobody has asked a second time


def test_one_private_address_among_others_is_enough(monkeypatch):
    async def resolved(host, port, **kwargs):
        return [(0, 0, 0, "", (each, port)) for each in ("8.8.8.8", "10.0.0.1")]

    async def found():
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
        return await addresses.resolve_public("two.example", 80)

    with pytest.raises(addresses.Forbidden, match=r"10\.0\.0\.1"):
        asyncio.run(found())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        *(
            (private, False)
            for private in (
                *(
                    "0.0.0.0",
                    "10.1.2.3",
                    "100.64.0.1",
                    "127.0.0.1",
                    "127.255.0.1",
                    "169.254.169.254",
                ),
                *("172.16.0.1", "192.168.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
                *("255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
                *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2001:db8::1", "fec0::1"),
                *("2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
            )
        ),
    ],
)
def test_which_addresses_are_public(address, public):
    assert addresses.is_public(ipaddress.ip_address(address)) == public


def test_a_server_fetches_and_asks_with_what_it_fetched(port):
    reader = {"hosts": [f"{NAME}:{port}"], "resolve": resolve}
    with serving(None, limits=LIMITS, reader=reader) as served:
        url = f"http://{NAME}:{port}/png"
        reply = ask(served, turn(QUESTION, picture_part(url))).parse()
        assert reply.cropvlm["boxes"][0]["size"] == [80, 40] and reply.cropvlm["warnings"] == []
        private = ask(served, turn(QUESTION, picture_part()))
        assert private.parse().choices[0].message.content == "seven"
