"""Drop what the stock theme loads and this book does not use: thebe, whose script is declared twice and logs an error."""


def drop_thebe(app, pagename, templatename, context, doctree):
    """Take thebe's scripts off a page; `app.add_js_file` cannot be undone earlier."""
    scripts = context.get("script_files", [])
    context["script_files"] = [
        script
        for script in scripts
        if "thebe" not in str(getattr(script, "filename", script)).lower()
        and "THEBE" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]


def setup(app):
    """Register the hook, after the extensions that add the scripts."""
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
