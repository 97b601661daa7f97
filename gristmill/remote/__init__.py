"""Workspaces away from the disk: a bucket holds the truth, a mirror on this disk what is being worked on.

bucket.py      objects under a URL: read, write, conditional write, list; errors in words
lease.py       the lock: one holder at a time, renewed while it lives, taken over when it does not
store.py       the store: artifacts fetched when they are looked at, committed with the manifest last
workspace.py   the workspace: all of it together, and files that only grow
"""
