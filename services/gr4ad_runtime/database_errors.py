"""What PostgreSQL says when it cannot, in terms of the error tree."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gr4ad_runtime.errors import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    Gr4adError,
    ResourceExhaustedError,
    UnavailableError,
)

FIELD = "database"


def database_error(error: Exception) -> Gr4adError | None:
    """Return the error that tells a caller what to do about a database error; None where it is the program's fault.

    Args:
        error: Of SQLAlchemy or psycopg.
    """
    if isinstance(error, PoolTimeoutError):
        return ResourceExhaustedError(FIELD, "no free connection", "repeat the call later, or enlarge the pool")
    original = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(original, psycopg.Error):
        return None
    said = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    match original.sqlstate or "":
        case "53100":
            return ResourceExhaustedError(
                FIELD,
                said,
                "no disk space for the database: free some on its volume, or enlarge it; this call stored nothing",
            )
        case "53200" | "53300" | "53400":
            return ResourceExhaustedError(FIELD, said, "the database is at its limit: repeat the call later")
        case "40001" | "40P01" | "55P03":
            return AbortedError(FIELD, said, "another transaction was faster: repeat the call")
        case "57014":
            return DeadlineExceededError(FIELD, said, "the statement took too long: repeat the call with less at once")
        case "58030" | "XX001" | "XX002":
            return DataLossError(FIELD, said, "the database's storage is damaged: restore it from a backup")
        case "3D000" | "28000" | "28P01":
            return UnavailableError(FIELD, said, "check database, user and password in GR4AD_DATABASE_URL")
        case state if state[:2] in ("08", "57") or state == "25P03":
            return UnavailableError(FIELD, said, "the connection was lost: repeat the call")
        case "" if isinstance(original, psycopg.OperationalError):
            return UnavailableError(FIELD, said, "it cannot be reached: start it, or correct GR4AD_DATABASE_URL")
    return None
