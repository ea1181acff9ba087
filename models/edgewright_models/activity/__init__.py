"""Shoulder exercises told apart by a smart-watch, for people that the model has not met.

`data` needs numpy only; `recipe` needs the compiler.
"""
