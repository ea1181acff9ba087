"""Trains, distils, prunes, quantizes, exports, measures and signs: from a recipe to a package on a hub.

Recipes use `recipe`, `train`, `distill`, `prune` and `monitor`; who wants a package calls `compilation.compile_recipe`;
who wants to ship it uses `keys` and `publish`, which need neither torch nor a converter.
"""
