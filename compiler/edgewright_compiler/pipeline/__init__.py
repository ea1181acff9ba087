"""The pipeline: steps cached by what they depend on, runs that can be listed, and the choice between candidates."""
