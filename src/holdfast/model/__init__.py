"""Floor 1: frozen values. What a run, a step, a log line is, as the database keeps it."""
