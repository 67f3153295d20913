"""The one tree of exceptions that this project raises.

PkmError
├── SettingsError        a setting is unknown, missing or has a value that can't be used
├── ForbiddenAddressError  a producer was pointed at an address that it may not connect to
├── SourceError          a producer's source gave what can't be taken, or more than it may
├── UnreachableError     an endpoint (S3, Kinesis, catalog) did not answer, or refused
├── MissingError         a stream, bucket, table or note that should exist does not
├── ModelError           a model can't be found or loaded
├── QueryError           a search or SQL query can't be understood or run
├── ResourceError        this machine or container has too little memory
├── CommitError          a table could not be committed although it was retried
├── SnapshotError        a recovery snapshot is missing, damaged, forged or does not fit
├── FailureRateError     too many of the last records failed
├── FencedError          a newer execution of the same flow has taken over
└── VerificationError    a check of results found something wrong

Bad *data* never raises: it becomes a `core.records.Failure` and goes to the dead letters. These exceptions are for
a broken world or a user's mistake, and their message names the thing, the value and what to do.
"""

__all__ = [
    "CommitError",
    "FailureRateError",
    "FencedError",
    "ForbiddenAddressError",
    "MissingError",
    "ModelError",
    "PkmError",
    "QueryError",
    "ResourceError",
    "SettingsError",
    "SnapshotError",
    "SourceError",
    "UnreachableError",
    "VerificationError",
    "reason",
]


class PkmError(Exception):
    """Base of all errors that are shown to the user as one line, without a traceback."""


class SettingsError(PkmError):
    """A setting is unknown, missing or unusable."""


class ForbiddenAddressError(PkmError):
    """An address or redirect leads to where producers may not connect to."""


class SourceError(PkmError):
    """What a producer reads from is damaged, larger than it may be, or does not speak its protocol."""


class UnreachableError(PkmError):
    """A service did not answer, or refused us, after all retries."""


class MissingError(PkmError):
    """Something that `pkm init` creates, or that the user named, does not exist."""


class ModelError(PkmError):
    """A model can't be found or loaded."""


class QueryError(PkmError):
    """A query can't be understood or run."""


class ResourceError(PkmError):
    """There is too little memory for a process of ours, or for what it keeps in it."""


class CommitError(PkmError):
    """A table could not be committed; nothing is lost, the next start commits it."""


class SnapshotError(PkmError):
    """A recovery snapshot can't be used."""


class FailureRateError(PkmError):
    """Too many of the last records failed; the flow stopped before it moved a whole stream into the dead letters."""


class FencedError(PkmError):
    """Another, newer execution of this flow owns the state; this one must stop."""


class VerificationError(PkmError):
    """A check found a difference between what should be there and what is."""


def reason(error: BaseException) -> str:
    """Say in one line, for a message of ours, what an exception of a library says in many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
