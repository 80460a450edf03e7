"""The raw channel: a bounded queue of messages in an RMA window, for any rank to put into and to take from.

Layout, top to bottom; nothing here knows of executors:

    _remote       RemoteChannel: the operations       _agreement  what the ranks check before they make one
    _ends         a rank's two ends: how they wait, whom they wake
    _background   putf and takef                      _waiting    look, yield, sleep until woken
    _codecs       messages <-> bytes, by dtype        _frames, _pickling  those of any object
    _producer, _consumer  the two ends of the ring    _window     its memory, on MPI.Win
    _recovery    what the dead leave behind in it        _deaths  who has died, as told by whoever knows
    _ring         the ring itself: its theory, its layout; pure, over
    _memory       the little that it asks of a memory _errors
"""

from ._errors import (
    ChannelBroken,
    ChannelClosed,
    ChannelEmpty,
    ChannelError,
    ChannelFull,
    ChannelMemoryError,
    IncompletePut,
    Share,
)
from ._remote import RemoteChannel, Statistics

__all__ = [
    "ChannelBroken",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
    "ChannelFull",
    "ChannelMemoryError",
    "IncompletePut",
    "RemoteChannel",
    "Share",
    "Statistics",
]

for _name in __all__:  # the names under which tracebacks and pickles show them
    globals()[_name].__module__ = __name__
del _name
