"""Floor 4: who waits, and who writes: `reply` is how one waits, `committer` writes, `reader` reads beside it."""
