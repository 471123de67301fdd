"""Where intervals come from, and what they are judged by."""
