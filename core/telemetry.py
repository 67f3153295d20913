"""Logs and counters: structlog for people and machines, prometheus_client for what bytewax serves on /metrics."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import structlog
from prometheus_client import Counter

from core.settings import Settings
from core.visible import visible

__all__ = [
    "COMMITS",
    "DUPLICATES",
    "FAILURES",
    "NOTES",
    "RECORDS",
    "REUSED",
    "configure_logging",
    "quiet_libraries",
]

RECORDS = Counter("pkm_records_read", "Records read from the stream")
DUPLICATES = Counter("pkm_duplicates", "Events dropped because they were seen before")
FAILURES = Counter("pkm_failures", "Records that went to the dead letters", ["step"])
NOTES = Counter("pkm_notes_enriched", "Notes that passed enrichment")
REUSED = Counter("pkm_notes_reused", "Notes whose text was enriched before")
COMMITS = Counter("pkm_commits", "Commits of a store", ["store"])


def configure_logging(settings: Settings) -> None:
    """Send our logs to standard error in the chosen format, and keep libraries quiet."""
    # JSON spells out control characters by itself.
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [_without_commands, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    quiet_libraries()


def _without_commands(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # A file's name or a service's answer must neither command the terminal nor look like a line of its own.
    return {
        name: visible(value, keep_lines=name == "exception") if isinstance(value, str) else value
        for name, value in event.items()
    }


def quiet_libraries() -> None:
    """Silence progress bars and chatter of the model and table libraries; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # The hub reports every retry; what matters in the end is in the error.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in (
        "pyiceberg",
        "sentence_transformers",
        "transformers",
        "botocore",
        "urllib3",
        "werkzeug",
        "moto",
        "dulwich",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pyiceberg|transformers|sentence_transformers|keybert|sklearn)\b")
