"""Mend what the stock theme and extensions do and this book does not want: scripts, a second header, invalid markup."""

import re

# Markup that no HTML checker accepts, or that a screen reader stumbles over, and what takes its place.
MENDED = (
    # MyST-NB: a paragraph inside a summary
    (r'<p class="((?:collapsed|expanded) admonition-title)">(.*?)</p>', r'<span class="\1">\2</span>'),
    # sphinx-exercise: one id for all exercises of a page
    (r' id="(?:exercise|solution)-content"', ""),
    # pandas: a style sheet and an obsolete attribute in every table
    (r"<style scoped>.*?</style>", ""),
    (r'<table border="1" class="dataframe">', '<table class="dataframe">'),
    # Sphinx: a definition list without terms, for a signature over several lines
    (r'(<span class="sig-paren">[(\[]</span>)\s*<dl>(.*?)</dl>', r'\1<ul class="sig-list">\2</ul>'),
    (r'<dd>(<em class="sig-param">.*?)</dd>', r"<li>\1</li>"),
    # a heading without a word heads nothing
    (r"<th((?: [^>]*)?)>(?:<p></p>)?</th>", r"<td\1></td>"),
)


def drop_header(app, config):
    """Leave the theme's upper header empty: it would hold a second search field, above the sidebar's."""
    config.html_theme_options.setdefault("navbar_persistent", [])


def drop_thebe(app, pagename, templatename, context, doctree):
    """Take thebe's scripts off a page: one is declared twice, which logs an error, and nothing here uses them."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in str(getattr(script, "filename", script)).lower()
        and "THEBE" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]


def mend_markup(app, pagename, templatename, context, doctree):
    """Replace markup in a page's text that is not valid HTML (`MENDED`)."""
    for pattern, mended in MENDED:
        context["body"] = re.sub(pattern, mended, context.get("body", ""), flags=re.DOTALL)


def lead_to_sources(app, pagename, templatename, context, doctree):
    """Let the edit links of derived pages lead to what they are derived from."""
    derived = {r"(notebooks/\w+)\.ipynb$": r"\1.py", r"book/claims\.md$": "book/claims.toml"}
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("label") == "source-edit-button":
                for page, source in derived.items():
                    button["url"] = re.sub(page, source, button["url"])


def setup(app):
    """Register the hooks, those for a page after the extensions that fill it."""
    app.add_js_file("book.js", loading_method="defer")
    app.connect("config-inited", drop_header)
    for hook in (drop_thebe, mend_markup, lead_to_sources):
        app.connect("html-page-context", hook, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
