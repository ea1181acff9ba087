"""How right a model is where nobody says what was true, and where somebody does, later."""
