"""What lies in files and on the hub: checkpoints, LoRA, published towers and names, devices.

It knows tensors and modules, not what they are for, and imports nothing of this package.
"""
