"""Reports: traces in their JSON form (see `bvllm_adapters.trace`) -> HTML, SVG and PNG.

Pure functions of plain data: no model, no file, no network, no script. A figure is a `Drawing` of
a few kinds of shapes, which `svg` writes as text and `picture` paints. It imports nothing above it.
"""
