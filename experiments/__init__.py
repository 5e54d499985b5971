"""Experiments as commands: what to run, running it, and what came out.

``scripts/compare.py`` and ``scripts/ablate.py`` are their command lines. A *job* trains once and
tests what it trained; a *run* is one command of ``train.py``, and its own files say how it ended.
"""
