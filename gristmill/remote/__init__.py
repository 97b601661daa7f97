"""What is away from the disk: workspaces in a bucket, of which a mirror on this disk has what is being worked on, and
rollout files that are read from one.

bucket.py      objects under a URL: read, write, conditional write, list; errors in words
transfer.py    several files at once, with progress
lease.py       the lock: one holder at a time, renewed while it lives, taken over when it does not
store.py       the store: artifacts fetched when they are looked at, committed with the manifest last
workspace.py   the workspace: all of it together, and files that only grow
examine.py     what the doctor looks at
rollouts.py    rollout files, copied before they are read
"""
