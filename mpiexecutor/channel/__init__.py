"""The raw channel: a bounded queue of messages in an RMA window, for any rank to put into and to take from.

Layout, top to bottom. Its MPI side is the room _rma.

    _remote     RemoteChannel: made, claimed, closed and freed
    _putting    its operations that put,
    _taking     that take,
    _losses     and what it does when ranks have failed
    _base       the parts that these have in common
    _agreement  what the ranks check together before they make one
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
