"""Show every PNG at the size its pixels and its dpi give: a figure has two pixels where a page has one."""

from pathlib import Path

import imagesize
from docutils import nodes

CSS_DPI = 96  # CSS pixels an inch


def size_figures(app, doctree, docname):
    """Give each PNG that says its dpi its own width on a page (figures.css keeps it within a narrow one)."""
    if app.builder.format != "html":
        return
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        if path.suffix != ".png" or "scale" in image or not path.is_file():
            continue
        dpi, _ = imagesize.getDPI(path)
        if dpi > 0:
            image["width"] = f"{round(imagesize.get(path)[0] * CSS_DPI / dpi)}px"
            # The notebook notes a height too, which would squeeze the picture where its width is cut.
            image.attributes.pop("height", None)
            image["classes"].append("no-scaled-link")


def setup(app):
    """Register the hook, which runs once the pictures of a page are known."""
    app.connect("doctree-resolved", size_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
