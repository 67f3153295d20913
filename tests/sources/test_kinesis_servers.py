"""The servers that stand in for Kinesis outlive the clients that tests kill."""

from __future__ import annotations

import socket
import struct
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from kinesis_servers import SERVERS, running

# Close with a reset, as the kernel does for a process that is killed with an answer unread.
RESET = struct.pack("ii", 1, 0)
HALF_A_REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.servers
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_outlives_a_client_that_is_killed_in_the_middle_of_a_request(server: str) -> None:
    with running(server) as url:
        address = urlsplit(url).netloc
        for _ in range(20):
            # The answer shows that the server is there after the client before, and has accepted this one.
            client = connected(address)
            client.sendall(HALF_A_REQUEST)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
        connected(address).close()


def connected(address: str) -> socket.socket:
    """Connect, and wait for a first answer, whatever it says."""
    connection = HTTPConnection(address, timeout=10)
    connection.request("GET", "/")
    connection.getresponse().read()
    assert connection.sock, "the server keeps the connection open"
    return connection.sock
