"""`edgewright demo`: the whole loop on this machine, with real processes, and every claim checked as it is made."""
