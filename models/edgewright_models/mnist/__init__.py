"""Handwritten digits, 28x28: the quick one of the teacher → student recipes, with 3,000 rows to learn from.

`data` needs numpy only; `recipe` needs the compiler.
"""
