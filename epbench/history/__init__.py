"""Runs of many nights: an append-only store, series over it, and ways out of it."""
