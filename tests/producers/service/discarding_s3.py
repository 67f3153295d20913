"""S3 that forgets what it is given, in a process of its own: an upload of gigabytes costs it no memory.

python discarding_s3.py     says its port on standard output
"""

from __future__ import annotations

import socket
import sys
from collections import Counter

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ETAG = '"0123456789abcdef0123456789abcdef"'
sizes: Counter[str] = Counter()


def xml(name: str, content: str) -> Response:
    return Response(f"<{name}>{content}</{name}>", media_type="application/xml")


async def answer(request: Request) -> Response:
    """Answer as S3 does to what uploads of parts, copies and single objects ask for."""
    key, query = request.path_params["key"], request.query_params
    body = 0
    async for piece in request.stream():
        body += len(piece)
    match request.method:
        case "HEAD":
            # Only what was just uploaded is there, to be copied.
            headers = {"Content-Length": str(sizes[key]), "ETag": ETAG}
            return Response(status_code=200 if sizes[key] else 404, headers=headers)
        case "POST" if "uploads" in query:
            return xml("InitiateMultipartUploadResult", f"<Key>{key}</Key><UploadId>one</UploadId>")
        case "POST":
            return xml("CompleteMultipartUploadResult", f"<Key>{key}</Key><ETag>{ETAG}</ETag>")
        case "PUT" if "x-amz-copy-source" in request.headers:
            return xml("CopyPartResult" if "partNumber" in query else "CopyObjectResult", f"<ETag>{ETAG}</ETag>")
        case "PUT":
            if "partNumber" in query:
                sizes[key] += int(request.headers.get("x-amz-decoded-content-length", body))
            return Response(headers={"ETag": ETAG})
        case "DELETE":
            return Response(status_code=204)
        case _:
            return Response("<Error><Code>NoSuchKey</Code></Error>", 404, media_type="application/xml")


def main() -> None:
    """Serve until killed."""
    methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
    app = Starlette(routes=[Route("/{bucket}/{key:path}", answer, methods=methods)])
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none")).run(sockets=[listening])


if __name__ == "__main__":
    main()
