"""The whole pipeline once, on a local AWS and real documents; checks that nothing is missing anywhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from core.errors import MissingError, SettingsError
from core.settings import Settings, load_settings
from core.telemetry import configure_logging
from flows import knowledge
from pkm import screen
from pkm.initialise import initialise
from pkm.query import run_sql, search_text
from pkm.running import check_world, run_flow
from pkm.stack import local_aws
from pkm.status import counts
from producers import announce, files, installed
from sinks.lance import SearchHit

__all__ = ["DemoReport", "run_demo"]

# Its README shows what a demo prints, so it would be the best answer to the demo's question.
OURSELVES = "pkm-lakehouse"
INTERRUPTED = 130

TOP_CONCEPTS = """
    select concept.text as concept, count(*) as notes, round(avg(concept.score), 2) as score
    from (select unnest(concepts) as concept from silver.notes)
    group by all order by notes desc, score desc, concept limit 8
"""
TOP_ENTITIES = """
    select entity.text as entity, entity.type as type, count(*) as mentions, count(distinct note_id) as notes
    from (select note_id, unnest(entities) as entity from silver.notes)
    group by all order by notes desc, mentions desc, entity limit 8
"""
WINDOWS = """
    select window_start, window_end, source_type, count, round(avg_words) as avg_words
    from silver.metrics order by window_start, source_type
"""
# A document such as `{}` has no text, so there is nothing of it to search.
WITH_TEXT = "select count(*) as notes from silver.notes where chunk_count > 0"
FAILURES = "select step, error, message, s3_key from bronze.failures order by failed_at limit 5"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What a demo run found; `missing` names every store that lacks a document, and is empty when all is well."""

    documents: int
    seconds: float
    rows: dict[str, int]
    concepts: list[dict[str, Any]]
    entities: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    question: str
    hits: list[SearchHit]
    failures: list[dict[str, Any]]
    missing: list[str]


def run_demo(*, path: Path | None, documents: int, question: str, show: Callable[[str], None]) -> DemoReport:
    """Run the pipeline over at most `documents` documents and report what every store holds.

    Everything lives in memory and is gone at the end; Ctrl-C and SIGTERM end this process at once, with its children.
    Raises MissingError when `path` does not exist, SettingsError when it has no documents.
    """
    if path is not None:
        if not path.exists():
            raise MissingError(f'"{path}" does not exist: name a folder of documents')
        path = path.resolve()
    quiet = show is screen.quiet
    started = time.monotonic()
    with _memory_folder() as folder:
        show("starting a local AWS (Kinesis, S3, Glue)")
        with local_aws() as variables:
            settings = _demo_settings(variables, folder)
            show("creating stream, bucket, tables and stores; loading models")
            initialise(settings)
            check_world(settings, flow=knowledge.FLOW)
            items = _documents(path, settings)
            show(f"ingesting {path or 'the READMEs of the installed packages'}")
            summary = announce.announce(islice(items, documents), settings=settings)
            if summary.announced == 0:
                raise SettingsError(f"{path} has no documents: name a folder with Markdown, HTML, JSON or text files")
            show(f"processing {summary.announced} documents")
            with screen.flow_progress(quiet=quiet, total=summary.announced):
                run_flow(settings, flow=knowledge.FLOW, workers=1)
            seconds = time.monotonic() - started
            show("reading back")
            return _report(settings, documents=summary.announced, seconds=seconds, question=question)


@contextlib.contextmanager
def _memory_folder() -> Iterator[Path]:
    """Give a working directory in memory that is gone in the end, also when a signal ends this process."""
    folder = Path(tempfile.mkdtemp(prefix="pkm-demo-", dir="/dev/shm"))

    def leave(*_: object) -> NoReturn:
        shutil.rmtree(folder, ignore_errors=True)
        # Nothing of a demo is worth waiting for, least of all a last snapshot for an AWS that is gone.
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        screen.leave_progress()
        os._exit(INTERRUPTED)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # A `.env` where the user stands is about the user's own stream and catalog.
        with contextlib.chdir(folder):
            yield folder
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _demo_settings(variables: dict[str, str], folder: Path) -> Settings:
    # The demo must never reach a real account or a real bucket, whatever the user's environment says.
    for name in [name for name in os.environ if name.upper().startswith(("AWS_", "PKM_"))]:
        del os.environ[name]
    os.environ.update(
        variables, PKM_RECOVERY_DIR=str(folder / "recovery"), PKM_UNTIL_CAUGHT_UP="1", PKM_LOG_LEVEL="warning"
    )
    load_settings.cache_clear()
    settings = load_settings()
    configure_logging(settings)
    return settings


def _documents(path: Path | None, settings: Settings) -> Iterable[announce.SourceItem]:
    if path is None:
        return (item for item in installed.installed_readmes() if item.identity != OURSELVES)
    return files.files([str(path)], settings=settings)


def _report(settings: Settings, *, documents: int, seconds: float, question: str) -> DemoReport:
    rows = counts(settings)
    windows = run_sql(settings, WINDOWS)
    with_text = run_sql(settings, WITH_TEXT)[0]["notes"]
    found = {
        "bronze.notes": (rows["bronze.notes"], documents),
        "silver.notes": (rows["silver.notes"], documents),
        "silver.metrics": (sum(window["count"] for window in windows), documents),
        "vectors": (rows["vectors (notes)"], with_text),
        "metadata": (rows["metadata (notes)"], documents),
    }
    failures = run_sql(settings, FAILURES)
    missing = [f"{store} has {has} of {of} documents" for store, (has, of) in found.items() if has != of]
    missing += [f"{row['s3_key']} failed in {row['step']}: {row['message']}" for row in failures if missing]
    return DemoReport(
        documents=documents,
        seconds=seconds,
        rows=rows,
        concepts=run_sql(settings, TOP_CONCEPTS),
        entities=run_sql(settings, TOP_ENTITIES),
        windows=windows,
        question=question,
        hits=search_text(settings, question, k=5),
        failures=failures,
        missing=missing,
    )
