"""The two ends of a channel, as one rank has them; no MPI here.

put_end     the end at which this rank puts
take_end    the end at which this rank takes
end         what both have in common: a lock, a way to wait, a queue for the background; which ranks are woken, and when
background  the thread of putf and takef, and their futures
waiter      how a thread waits: look for a moment, then sleep until woken
rank_state  what both ends share, and how other ranks are woken
"""
