"""Readings of a space shuttle that are out of the ordinary, by an autoencoder that has seen normal ones only.

`data` needs numpy only; `recipe` needs the compiler.
"""
