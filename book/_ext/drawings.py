"""Put the book's drawings into its pages as SVG: there they take the colours of the theme, as a picture could not."""

from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.transforms import SphinxTransform

FOLDER = "_static/drawings/"


class Drawings(SphinxTransform):
    """Every image from the drawings' folder gives way to the file it names; its other text becomes the description."""

    default_priority = 500  # before Sphinx collects the images of a page, so that it copies none of these

    def apply(self):
        for image in list(self.document.findall(nodes.image)):
            name, path = self.env.relfn2path(image["uri"])
            if FOLDER in image["uri"] and Path(path).is_file():  # a missing one is reported as any image is
                self.env.note_dependency(name)
                told = f"</title><desc>{escape(image.get('alt', ''))}</desc>"
                drawn = Path(path).read_text(encoding="utf-8").replace("</title>", told, 1)
                image.replace_self(nodes.raw("", drawn, format="html"))


def setup(app):
    """Register the transform."""
    app.add_transform(Drawings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
