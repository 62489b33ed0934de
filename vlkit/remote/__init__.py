"""Hosted and served models behind the same interface as local ones."""

from vlkit.remote.model import HostedOptions, RemoteVLM, load_remote
from vlkit.remote.services import is_remote_name

__all__ = ["HostedOptions", "RemoteVLM", "is_remote_name", "load_remote"]
