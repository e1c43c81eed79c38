"""The library's logger: silent until the user sets logging up, and the only place that makes it."""

import logging

__all__ = ["log"]

log = logging.getLogger("mpskit")
log.addHandler(logging.NullHandler())
