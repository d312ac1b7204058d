"""Measuring a model: the needle task, what it is compared with, and intervals.

It may import conversation and what is below it; not training, bench or testing.
"""
