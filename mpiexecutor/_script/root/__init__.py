"""The root's part: which globals a call needs, and which of them the script has changed since the last call.

script  Script: the state for a call
scan    a scan of the globals, which makes versions and payloads
needs   globals as calls have needed them last, and whether they are unchanged
"""
