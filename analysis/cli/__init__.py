"""The analysis verbs of `isoloss`."""
