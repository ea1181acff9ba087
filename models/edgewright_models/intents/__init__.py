"""What a voice assistant is asked to do, from sentences expanded from templates.

`data` and `templates` need numpy only; `recipe` needs the compiler.
"""
