"""From files to runs that may be compared."""
