"""S3 and Kinesis as far as producers need them, fast: it keeps names, not bytes, and answers after a fixed time.

    python -m bench.aws_stand_in LATENCY_MS

Prints its port. For the benchmarks alone: moto answers about 120 puts a second, which would be all that is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
TAKEN = json.dumps({"SequenceNumber": "1", "ShardId": "shardId-000000000000"}).encode()


class Connection(asyncio.Protocol):
    """One connection that is kept alive; requests on it come one after the other."""

    def __init__(self, keys: set[bytes], latency_seconds: float) -> None:
        self._keys = keys
        self._latency = latency_seconds
        self._received = bytearray()
        self._continued = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end])
            lower = head.lower()
            found = LENGTH.search(lower)
            length = int(found[1]) if found else 0
            if len(self._received) < end + 4 + length:
                if b"\r\nexpect: 100-continue" in lower and not self._continued:
                    self._continued = True
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            self._continued = False
            self._answer(head, lower, body)

    def _answer(self, head: bytes, lower: bytes, body: bytes) -> None:
        method, key = head.split(b" ", 2)[:2]
        status, answer = b"200 OK", b""
        if method == b"PUT":
            if key in self._keys and b"\r\nif-none-match:" in lower:
                status = b"412 Precondition Failed"
            self._keys.add(key)
        elif method == b"HEAD":
            status = b"200 OK" if key in self._keys else b"404 Not Found"
        elif b"kinesis_20131202.putrecords" in lower:
            count = body.count(b'"PartitionKey"')
            answer = b'{"FailedRecordCount":0,"Records":[' + b",".join([TAKEN] * count) + b"]}"
        elif b"kinesis_20131202.putrecord" in lower:
            answer = TAKEN
        response = (
            b"HTTP/1.1 "
            + status
            + b'\r\nETag: "0"\r\nx-amzn-RequestId: 0\r\nContent-Type: application/x-amz-json-1.1'
            b"\r\nContent-Length: " + str(len(answer)).encode() + b"\r\n\r\n" + answer
        )
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, response)
        else:
            self._transport.write(response)


async def serve(latency_seconds: float) -> None:
    """Serve on a free port of loopback until standard input ends."""
    keys: set[bytes] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(keys, latency_seconds), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) / 1000))
