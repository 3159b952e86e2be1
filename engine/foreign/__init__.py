"""Checkpoints of other frameworks, read as data and turned into this project's."""
