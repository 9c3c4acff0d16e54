"""What a detector gets wrong, how much that costs, and why."""
