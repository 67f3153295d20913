"""Where rows go, and how they are read back: one module per store."""
