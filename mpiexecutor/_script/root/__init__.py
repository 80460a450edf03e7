"""The root's side of the script: what a call needs, and what has changed since the last call.

script  Script: the state that a call needs
look    one look at the globals: their versions and payloads
needs   globals as the last call has needed them, and whether they are unchanged
"""
