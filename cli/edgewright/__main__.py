"""`python -m edgewright`, for processes that must run under a given Python."""

from .main import main

main()
