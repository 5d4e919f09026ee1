"""What a notebook imports beside the science."""
