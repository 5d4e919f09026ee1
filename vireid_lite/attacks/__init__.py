"""Attacks on a frozen victim: one file an idea, all under the contract of `base`."""
