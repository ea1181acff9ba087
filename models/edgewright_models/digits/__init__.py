"""Handwritten digits on an 8x8 sensor: the smallest real task, and the one that the demonstration runs.

`data` needs numpy only, so that device processes can draw from it; `recipe` needs the compiler.
"""
