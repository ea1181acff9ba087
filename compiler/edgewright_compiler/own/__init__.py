"""A model of one's own: from `file.py:function`, weights and data to a recipe like any other."""
