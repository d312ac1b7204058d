"""Stage 1 without training: frames by what they show, by a scout's relevance, evenly, at random.

A selector is a module with `sees`, `see(frames)` and `forward(cls, question, *, seconds,
num_frames, generator)`, see `coverage`; `names` makes those that go by a name. It may import
features and what is below them, video and weights.
"""
