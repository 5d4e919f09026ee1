"""Many runs: what one is, its card, campaigns and grids of them, their tables."""
