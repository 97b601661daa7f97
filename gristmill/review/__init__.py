"""Review: people look at rollouts in a browser and say which are fit to train on.

queue.py     which rollouts, where each lies, and the other attempts at their tasks
shown.py     one rollout as the page shows it: text only, whatever the row holds
session.py   one reviewer at work: what the page asks for, and the decisions it sends
server.py    the page on loopback, behind a random token; nothing else is served
sheet.py     the same as JSONL, for those who review elsewhere
waiting.py   samples that a run waits for
"""
