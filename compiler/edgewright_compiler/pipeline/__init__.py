"""The pipeline: steps that are cached by what they depend on, runs that can be listed, and the choice between candidates."""
