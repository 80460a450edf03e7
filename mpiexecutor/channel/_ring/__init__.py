"""The ring buffer: the algorithm alone, over any memory.

layout    where everything lies, and the words of the ring
producer  reserves slots, writes and publishes messages
consumer  claims messages and reads them
recovery  gives a ring back its order after a rank has died
"""
