"""Into the engines that people serve with: chosen frames with their times, visual tokens as
embeddings, which tokens to keep.

All of it is plain data in the shapes that transformers' processors, vLLM's offline calls and its
server, and hosted APIs take; none of them is imported. It may import conversation and all below it.
"""
