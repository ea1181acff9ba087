"""Pieces of clothing, 28x28: the full-size recipe, 60,000 rows to learn from and 10,000 to be judged on.

`data` needs numpy only; `recipe` needs the compiler.
"""
