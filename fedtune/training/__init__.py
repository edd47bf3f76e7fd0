"""Local training: a client's walk through its rows, microbatches, the loss, the steps, and the delta."""
