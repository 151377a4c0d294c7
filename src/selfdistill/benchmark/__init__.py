"""What the training loop costs: against a bare loop, and against the ordinary one with worker processes."""
