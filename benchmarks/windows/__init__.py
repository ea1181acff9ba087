"""Windows of rows whose truth is known, what is counted of them, and the rules that judge them."""
