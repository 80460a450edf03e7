"""Small things that know nothing of MPI.

inbox     a queue between threads
polling   waiting for other ranks
periodic  a thread that looks now and then
process_end  what a process does when it ends, in one order
pickling  objects to bytes
seconds   how long anything that may never come is waited for
"""
