"""The verbs of `isoloss` that make and look after records, one function each.

They import what they need when called, so that `--help`, plan and status answer at once.
"""
