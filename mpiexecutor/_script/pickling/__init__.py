"""Pickles that contain names in the place of what belongs to the script.

calls          calls and results: functions and classes of the script by name, lambdas and closures by value
definitions    globals: one of them by value, all others by name
digests        digests of globals, to compare a worker's own with the script's
classes        how classes are rebuilt that are pickled by value
reducers       how globals are rebuilt that pickle refuses: locks, open files, loggers
named_objects  the same for objects that pickle would only refer to by name: caches, single dispatch
shared_memory  the same for objects that forked processes share
"""

from .calls import Has, always, dumps
from .definitions import dump_definitions, identities_of, load_definitions
from .digests import digest_of, type_digest

__all__ = ["Has", "always", "digest_of", "dump_definitions", "dumps", "identities_of", "load_definitions", "type_digest"]
