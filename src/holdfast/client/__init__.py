"""Runs of an app elsewhere, over HTTP: the verbs of `Holdfast` for another process. See docs/how-to/client.md."""

from .client import Client
from .documents import Acted, JobInfo
from .errors import Refused, ServerError, ServerUnavailable
from .named import NamedCall, NamedJob
from .remote import remote_job

__all__ = [
    "Acted",
    "Client",
    "JobInfo",
    "NamedCall",
    "NamedJob",
    "Refused",
    "ServerError",
    "ServerUnavailable",
    "remote_job",
]
