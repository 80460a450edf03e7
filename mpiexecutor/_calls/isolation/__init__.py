"""Isolated calls: a worker has a child process run them, and forwards messages between the root and the child.

    root ══ work channel ══> rank ── link ──> child: the same Worker as in a rank, at the link in the place of the channels
         <══ reply channel ══     <── link ──

parent  the rank's side: its children, and what is done when one dies
child   the child's side: what stands in the place of channels and bulk transfer
link    messages between the two, through a socket and shared memory

Nothing of the user is unpickled in the rank. For how a child starts and ends see _liveness/children.py.
"""
