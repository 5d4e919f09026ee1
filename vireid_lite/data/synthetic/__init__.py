"""The synthetic visible-infrared set: rendered people."""
