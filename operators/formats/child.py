"""What runs inside the parsers' process: limits first, then one document at a time.

Imports nothing heavy at its head: the limits of the process are set before a parser is loaded.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from operators.formats.detect import Format
    from operators.formats.extracted import Extracted, Refused

__all__ = ["extract", "extract_within", "start"]

_PR_SET_PDEATHSIG: Final = 1


def start(parent: int, memory_bytes: int) -> None:
    """Set up this process to end with `parent` (a process id), stay silent and use at most `memory_bytes`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Linux only, like the product: the kernel ends this process when its parent is gone, even by SIGKILL.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    # The language model multiplies one small vector: threads would only cost memory.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from operators.formats import html_text, json_text, language, markdown_text, plain_text

    language.load()
    for module in (html_text, json_text, markdown_text, plain_text):
        module.read("<p>warm</p>" if module is not json_text else "{}")


def extract_within(seconds: float, text: str, document_format: Format, *, declared: bool) -> Extracted | Refused:
    """Do `extract`; the kernel ends this process with SIGPROF when that takes more than `seconds` of CPU time.

    CPU time, because on a busy machine wall time would turn good documents into failures. A signal that no handler
    catches, because a parser stuck in C would never get to run the handler.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return extract(text, document_format, declared=declared)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def extract(text: str, document_format: Format, *, declared: bool) -> Extracted | Refused:
    """Read one document; never raises. A document that only looked like JSON is read as plain text."""
    from dataclasses import replace

    from operators.formats import language
    from operators.formats.extracted import Refusal, Refused

    try:
        extracted = _read(text, document_format, declared=declared)
        return replace(extracted, language=language.of(extracted.text))
    except Refusal as refusal:
        return refusal.refused
    except MemoryError:
        return Refused("OutOfMemory", "reading the document takes more memory than a parser may have")
    except RecursionError:
        return Refused("TooDeep", "the document is nested deeper than its parser can follow")
    except Exception as error:  # noqa: BLE001 - a parser's own bug on hostile input is that document's failure
        return Refused("ParserError", f"the {document_format.name.lower()} parser failed with {type(error).__name__}")


def _read(text: str, document_format: Format, *, declared: bool) -> Extracted:
    from operators.formats import html_text, json_text, markdown_text, plain_text
    from operators.formats.detect import Format
    from operators.formats.extracted import Refusal

    if document_format is Format.MARKDOWN:
        return markdown_text.read(text)
    if document_format is Format.HTML:
        return html_text.read(text)
    if document_format is Format.JSON:
        try:
            return json_text.read(text)
        except Refusal as refusal:
            if declared or refusal.refused.error != "NotJson":
                raise
    return plain_text.read(text)
