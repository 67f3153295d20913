"""Ends a running flow on SIGTERM or Ctrl-C within 8 seconds: as cleanly as the time allows, and always safely.

What happens, counted from the signal:

- at once: sources give no more records, so the engine completes the last epoch, with a snapshot, and closes sinks;
- after 4 s: a model that still works on what was read before is interrupted; sinks are closed without a snapshot;
- after 5 s: the engine is interrupted, if no model was;
- after 5.5 s: whatever still runs is given up, and the last complete epoch's state is put on S3;
- after 7 s: the process ends.

Whichever way it went, the next start goes on from the newest snapshot, and sinks drop what they already have.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog

from core.errors import FencedError
from core.first_error import first_error, note

__all__ = [
    "FENCE_SIGNAL",
    "ending",
    "fail",
    "handle_signals",
    "interrupt_if_overdue",
    "remaining_seconds",
    "request",
    "requested",
    "when_given_up",
]

CLEAN_SECONDS = 4.0
INTERRUPT_SECONDS = 5.0
GIVE_UP_SECONDS = 5.5
END_SECONDS = 7.0

FENCE_SIGNAL = signal.SIGUSR1
"""Tells a flow that a newer execution has taken over: it is interrupted at once, and completes no epoch."""

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

_log = structlog.get_logger(module=__name__)


class _Stopping:
    """What is known about the end of this process; plain attributes, because signal handlers must not take locks."""

    def __init__(self) -> None:
        self.requested_at: float | None = None
        self.ending = False
        self.failed = False
        self.interrupts = 0
        self.interrupted = False
        self.interrupter: str | None = None
        self.choosing = threading.Lock()
        self.given_up: Callable[[], None] | None = None


_state = _Stopping()


def requested() -> bool:
    """Tell whether this process was asked to stop: sources end, and open windows are not emitted."""
    return _state.requested_at is not None


def request() -> None:
    """Ask the flow in this process to stop; again does nothing."""
    if _state.requested_at is None:
        _state.requested_at = time.monotonic()


def remaining_seconds() -> float | None:
    """Return how long this process may still take, or None when it was not asked to stop."""
    if _state.requested_at is None:
        return None
    return max(_state.requested_at + END_SECONDS - time.monotonic(), 0.0)


def interrupt_if_overdue() -> None:
    """Raise KeyboardInterrupt when the time for a clean end is over; steps with long batches call it in between.

    Either the workers' threads are interrupted or the main thread: the engine aborts when both are.
    """
    if _since_request() >= CLEAN_SECONDS and _is_interrupter("worker"):
        raise KeyboardInterrupt


def when_given_up(close: Callable[[], None]) -> None:
    """Have `close` called, on another thread, if the flow does not end in time; then it is not interrupted again."""
    _state.given_up = close


def ending() -> None:
    """Say that the engine has ended and only its end is tidied up, which must not be interrupted."""
    _state.ending = True


def fail() -> None:
    """Say that the end did not go well in a way that the exit code must tell."""
    _state.failed = True


def handle_signals(*, exit_at_end: bool) -> None:
    """Make SIGTERM and Ctrl-C stop the flow in this process as the module's text says; Ctrl-C twice interrupts it.

    `exit_at_end` is for a program whose own code can't be changed: it then ends with code 0 after a stop, without a
    traceback, and after an error with one line of ours below the engine's report. Does nothing outside the main
    thread, where Python has no handlers. Children that are forked have the usual meaning of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if exit_at_end:
        atexit.register(_leave)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in _STOP_SIGNALS:
        signal.signal(number, _on_stop)
    signal.signal(FENCE_SIGNAL, _on_fence)
    # Python calls handlers between two steps of the main thread, which may be in a long call of a library. The number
    # of the signal is written here at once.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reading,), name="stopping", daemon=True).start()


def _on_stop(number: int, _frame: FrameType | None) -> None:
    request()
    # A service manager may send SIGTERM several times; only a second Ctrl-C means "now". Counted here, because
    # the watching thread may have made the request for the first.
    _state.interrupts += number == signal.SIGINT
    now = _state.interrupts > 1 or _since_request() >= INTERRUPT_SECONDS
    if now and not _state.ending and _is_interrupter("main") and not _state.interrupted:
        _state.interrupted = True
        raise KeyboardInterrupt


def _on_fence(_number: int, _frame: FrameType | None) -> None:
    if not _state.ending:
        # Nothing of this execution can be committed any more, so its sinks are not closed.
        note(FencedError("a newer execution of this flow has taken over: this one stops; run a flow only once"))
        raise KeyboardInterrupt


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for number in (*_STOP_SIGNALS, FENCE_SIGNAL):
        if signal.getsignal(number) in {_on_stop, _on_fence}:
            signal.signal(number, signal.SIG_DFL)


def _watch(signals: int) -> None:
    while not _STOP_SIGNALS.intersection(os.read(signals, 64)):
        pass
    request()
    _sleep_until(CLEAN_SECONDS)
    if not _state.ending:
        _log.warning("stopping takes long; what came after the newest snapshot is read again by the next start")
        _silence_the_engine()
    _sleep_until(INTERRUPT_SECONDS)
    main = threading.main_thread().ident
    if main is not None and not _state.ending and signal.getsignal(signal.SIGTERM) is _on_stop:
        # A real signal: it wakes a main thread that waits for a lock, which `interrupt_main` does not.
        signal.pthread_kill(main, signal.SIGTERM)
    _sleep_until(GIVE_UP_SECONDS)
    if _state.given_up is not None:
        _state.given_up()
    _sleep_until(END_SECONDS)
    os._exit(1 if _state.failed else 0)


def _since_request() -> float:
    return 0.0 if _state.requested_at is None else time.monotonic() - _state.requested_at


def _sleep_until(seconds: float) -> None:
    time.sleep(max(seconds - _since_request(), 0.0))


def _is_interrupter(who: str) -> bool:
    # In a signal handler too, so it must not wait: whoever holds the lock is the interrupter, and is not `who`.
    if _state.interrupter is None and _state.choosing.acquire(blocking=False):
        _state.interrupter = who
    return _state.interrupter == who


def _silence_the_engine() -> None:
    # From here on it can only report the interrupt, as a panic with a trace.
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _leave() -> None:
    # The Rust clients keep threads that may let go of a Python object just now; while the interpreter is torn down
    # that aborts the process, so it ends without being torn down.
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    error = first_error()
    if error is not None:
        _state.failed = True
        sys.stderr.write(f"pkm: {error}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    broken = getattr(sys, "last_value", None) is not None and _state.interrupter is None
    os._exit(1 if broken or _state.failed else 0)
