"""Pickles that name what belongs to the script instead of carrying it.

calls          calls and results: functions and classes of the script by name, lambdas and closures by value
definitions    the value of a global: that one by value, all others by name
digests        the same for comparison: whether a worker's own global equals the script's
classes        how classes are rebuilt
reducers       how a global is made anew that pickle refuses: locks, open files, loggers
named_objects  the same for what pickle would carry by its own name only: caches, single dispatch
shared_memory  the same for what forked processes share
"""

from .calls import Has, always, dumps
from .definitions import dump_definitions, identities_of, load_definitions
from .digests import digest_of, type_digest

__all__ = ["Has", "always", "digest_of", "dump_definitions", "dumps", "identities_of", "load_definitions", "type_digest"]
