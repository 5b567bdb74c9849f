"""Floor 5: the engine. Who claims runs, executes them, keeps their leases, and tells who wants to know."""
