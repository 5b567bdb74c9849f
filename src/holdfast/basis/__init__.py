"""Floor 0: what everything else stands on. Errors, time, ids, durations, values. No engine words here."""
