"""The ring buffer: the algorithm alone, over any memory. No MPI, no waiting, no threads.

layout       the theory, and where everything lies
records      what a rank notes before it reserves or claims
participant  what producers and consumers have in common
producer     reserves slots, writes and publishes messages
consumer     claims messages
receiver     reads messages that were claimed
recovery     restores a ring after a rank has failed
"""
