"""What the API reference needs beside Napoleon: the commands' help, and fields of a class listed once."""

from docutils import nodes
from docutils.parsers.rst import Directive

WIDTH = 100  # columns of a command's help


class Commands(Directive):
    """The help of every command of `vireid-lite`, as its --help prints it, each under a heading of its own."""

    def run(self):
        """Return one section a command."""
        import click
        from typer.main import get_command

        from vireid_lite.cli import app

        def sections(command, parent, name):
            context = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH)
            inner = getattr(command, "commands", {})
            if parent is None or not inner:
                title = context.command_path
                section = nodes.section("", nodes.title("", "", nodes.literal("", title)), ids=[nodes.make_id(title)])
                text = command.get_help(context)
                section += nodes.literal_block(text, text, language="none")
                yield section
            for part in inner:
                yield from sections(inner[part], context, part)

        return list(sections(get_command(app), None, "vireid-lite"))


def share(app, what, name, found, options, lines):
    """Give fields that a docstring describes together (`pull, push: ...`) a signature each."""
    head = ".. attribute:: "
    for at, line in reversed(list(enumerate(lines))):
        if line.startswith(head):
            lines[at : at + 1] = line.replace(", ", "\n" + " " * len(head)).split("\n")


def complete(app, what, name, found, options, signature, returns):
    """Let a dataclass's signature be read by Sphinx, which does not know what stands for a default made anew."""
    return signature and signature.replace("<factory>", "..."), returns


def skip(app, what, name, found, skipped, options):
    """Leave out a named tuple's "Alias for field number": the class's docstring describes the field."""
    return True if type(found).__name__ == "_tuplegetter" else None


def setup(app):
    """Register the directive and the hooks, the first one behind Napoleon's."""
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-docstring", share, priority=600)
    app.connect("autodoc-process-signature", complete)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
