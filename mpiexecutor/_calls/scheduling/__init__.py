"""The root's side of calls: between the futures and the channels.

    submit ──> backlog ──dispatcher──> work channel ──> workers ──> reply channel ──collector──> settler ──> future
                  ^                                                                      |
                  └───────────────── each finished message makes room ───────────────────┘

scheduler   the interface for executors: open, submit, close, wait
dispatcher  sends calls, in a thread that submits, or in the collector
collector   the thread that takes replies and notes their contents
lost_calls  which calls of failed workers run again, and which fail
settling    steps without the lock: settle futures, break executors, answer workers that wait
state       the state that all of these share, and its lock
session     the calls of one executor that have no outcome yet
series      calls of maps, which have no futures: several are one entry here, and one message
futures     futures whose calls can be cancelled while they run
"""
