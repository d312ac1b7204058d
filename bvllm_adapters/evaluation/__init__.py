"""Measuring a model: the needle task, what it is compared with, and intervals."""
