"""What an adapter is worth: the loss on rows that trained nothing, and answers to read."""
