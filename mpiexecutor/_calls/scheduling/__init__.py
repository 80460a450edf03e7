"""The root's side of calls: between the futures and the channels.

    submit ──> backlog ──dispatcher──> work channel ──> workers ──> reply channel ──collector──> settler ──> future
                  ^                                                                      |
                  └───────────────── each message that is done makes room ───────────────┘

scheduler   what executors call: open, submit, close, wait
dispatcher  sends calls, in the thread that made it possible: one that submits, or the collector
collector   the thread that takes replies and notes what they say
lost_calls  what becomes of the calls of workers that have died, and of calls that no worker could receive
settling    what is left to do once the lock is released: settle futures, break executors, answer workers that wait
state       what all of these share, and the one lock
session     the calls of one executor that have no outcome yet
series      calls of maps, which have no futures: several are one entry here, and one message
futures     futures whose calls can be cancelled while they run
"""
