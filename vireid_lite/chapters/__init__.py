"""What the chapters of the book import beside the science."""
