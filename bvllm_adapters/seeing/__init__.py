"""From frames to FrameFeatures, in bounded memory: encoding, what is kept, saved, and known again.

It may import hosts, features and what is below them, and video; not who asks about what was seen.
"""
