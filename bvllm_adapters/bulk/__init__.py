"""Thousands of videos: a table of them in, a line of results for each row out.

`batch` asks a model about each row, `select_batch` chooses frames without one. Both go on where
they were killed, take a share of the rows where several machines work, and never stop at a bad
file. What each does with a few rows (`AskRows`, `SelectRows`) is for whoever has a cluster, too.

It may import conversation, selectors and what is below them; evaluation stands on it.
"""
