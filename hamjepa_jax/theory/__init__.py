"""What the theory states, checked by computation and drawn."""
