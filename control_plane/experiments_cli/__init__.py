"""The commands `python -m control_plane experiments …`: ask a running server by its REST API, or plan offline.

`command.py` has the commands, `proposal.py` makes a new experiment of their options, `server.py` asks, `show.py`
prints, `plan.py` computes sample sizes.

A package of its own, as `tune` is: nothing that serves may come to need a terminal or httpx.
"""
