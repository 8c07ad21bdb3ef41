"""What is there because of XLA:CPU, whose convolutions are slow inside loops.

Nothing of it is in programs for other platforms: `_core/cpu.py` decides.
"""
