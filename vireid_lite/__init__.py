"""VIReID-lite: visible-infrared person re-identification, how it breaks, and how to tell whether an attack is real."""
