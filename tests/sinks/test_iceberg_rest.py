"""The tables in a REST catalog: a small server speaks the protocol, over pyiceberg's own SQL catalog."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest, Table

from builders import failure_of
from core import aws
from core.settings import Settings
from sinks import iceberg_catalog
from sinks.iceberg import IcebergSink
from sinks.iceberg_rows import failure_change
from sinks.iceberg_tables import BRONZE_FAILURES, TABLES

STATUS = {NoSuchTableError: 404, NamespaceAlreadyExistsError: 409, CommitFailedException: 409}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class RestCatalog:
    """The operations of the Iceberg REST protocol that a writer needs."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.calls: list[str] = []

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        self.calls.append(f"{method} {'/'.join(path)}")
        match method, path:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                self.catalog.create_namespace(tuple(body["namespace"]))
                return {"namespace": body["namespace"], "properties": {}}
            case "GET", ["namespaces"]:
                return {"namespaces": self.catalog.list_namespaces()}
            case "GET", ["namespaces", name, "tables"]:
                found = self.catalog.list_tables(name)
                return {"identifiers": [{"namespace": [space], "name": table} for space, table in found]}
            case "POST", ["namespaces", name, "tables"]:
                created = self.catalog.create_table(
                    f"{name}.{body['name']}",
                    Schema.model_validate(body["schema"]),
                    partition_spec=PartitionSpec.model_validate(body["partition-spec"]),
                    properties=body["properties"],
                )
                return self.loaded(created)
            case "GET", ["namespaces", name, "tables", table]:
                return self.loaded(self.catalog.load_table(f"{name}.{table}"))
            case "POST", ["namespaces", name, "tables", table]:
                request = CommitTableRequest.model_validate(body)
                self.catalog.commit_table(
                    self.catalog.load_table(f"{name}.{table}"), request.requirements, request.updates
                )
                return self.loaded(self.catalog.load_table(f"{name}.{table}"))
        raise AssertionError(f"{method} {path} is not part of this server")

    @staticmethod
    def loaded(table: Table) -> dict[str, Any]:
        return {
            "metadata-location": table.metadata_location,
            "metadata": orjson.loads(table.metadata.model_dump_json()),
            "config": {},
        }


@contextmanager
def rest_server(catalog: Catalog) -> Iterator[tuple[str, RestCatalog]]:
    service = RestCatalog(catalog)

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = orjson.loads(self.rfile.read(length)) if length else {}
            path = self.path.partition("?")[0].strip("/").split("/")[1:]
            try:
                status, answer = 200, service.answer(self.command, path, body)
            except tuple(STATUS) as error:
                status = STATUS[type(error)]
                answer = {"error": {"message": str(error), "type": type(error).__name__, "code": status}}
            content = orjson.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_one  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_rest_catalog_is_chosen_by_setting_alone(settings: Settings, tmp_path: Path) -> None:
    behind = load_catalog(
        "behind", **{**aws.catalog_properties(settings), "type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    )
    with rest_server(behind) as (uri, service):
        chosen = settings.model_copy(update={"catalog": "rest", "catalog_uri": uri})
        for _ in range(2):
            assert iceberg_catalog.create_tables(chosen) == [spec.identifier for spec in TABLES]

        sink = IcebergSink(BRONZE_FAILURES, settings=chosen)
        part = sink.build_part("write", BRONZE_FAILURES.identifier, None)
        part.write_batch([failure_change(failure_of(number), NOON, "1") for number in (1, 2)])
        part.snapshot()
        part.close()
        resumed = sink.build_part("write", BRONZE_FAILURES.identifier, None)
        resumed.write_batch([failure_change(failure_of(number), NOON, "1") for number in (1, 2, 3)])
        resumed.snapshot()
        resumed.close()

        found = iceberg_catalog.scan(chosen, "bronze.failures").column("event_id").to_pylist()
        assert sorted(found) == ["event-1", "event-2", "event-3"]
        assert iceberg_catalog.row_count(chosen, "bronze.failures") == 3
        assert service.calls.count("POST namespaces/bronze/tables/failures") == 4
