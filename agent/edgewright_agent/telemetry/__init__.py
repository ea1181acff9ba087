"""What was counted: rows of facts, their windows, labels that come late, what the process uses."""
