"""Book production: `vireid-lite book` and `vireid-lite publish-check`; `build` alone knows the other modules."""
