"""Silence what the stock theme does and this book does not want: thebe's scripts, and a second header with a search."""


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


def setup(app):
    """Register the hooks, the second one after the extensions that add the scripts."""
    app.connect("config-inited", drop_header)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
