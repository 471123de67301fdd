"""Where the planned runs execute."""
