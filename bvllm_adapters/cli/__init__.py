"""The `bvllm` command: one module a sub-command, each thin.

It may import everything; nothing imports it.
"""
