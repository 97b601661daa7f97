"""Trainers other than TRL: each framework in processes and an environment of its own, one module a framework.

`framework.py` has what they share: rendering the framework's own launch files, running them by a launcher
(gristmill/launch), reading progress from the log, and turning what comes out into the folder that a trainer promises.
docs/trainers.md says what was tried, with which version.
"""
