"""What a person reads: the page and the numbers that matter."""
