"""Training: the update step, the loop around it, and the record that it leaves."""
