"""Errors that are meant for users: shown without a traceback, exit status 2.

Everything a user can get wrong (settings, files, weights, pictures) raises one of these; anything else is our own bug.
"""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can mend; the message says what was expected, what came, where, and what to do."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists all of them."""


class WeightsError(UserError):
    """A weight file is missing, unreadable, unsafe, or does not fit the network."""


class DataError(UserError):
    """A picture, label, annotation, index or mask file is missing or wrong."""


class UnreadableImageError(DataError):
    """One picture cannot be read; the message names the file."""
