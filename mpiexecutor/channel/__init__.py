"""The raw channel: a bounded queue of messages in an RMA window, for any rank to put into and to take from.

Layout, top to bottom. Its MPI side is the room _rma.

    _remote     RemoteChannel: the constructor, claim, close, free
    _putting    its operations that put messages
    _taking     its operations that take messages
    _losses     its operations after ranks have failed
    _base       the parts that these operations share
    _agreement  what all ranks check together before they make a channel
    _ends       a rank's two ends: how they wait, and which ranks they wake
    _codecs     messages <-> bytes, by dtype
    _ring       the ring itself: its theory and its layout
    _errors     one for each way to fail
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
