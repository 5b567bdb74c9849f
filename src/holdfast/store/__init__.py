"""Floor 3: the only place with SQL. `base` says what a store can do; the others say how."""
