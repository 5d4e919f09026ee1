"""The API reference from docstrings as they are written: plain prose, `code` in backticks, `name: what it is.` items.

Docstrings become reStructuredText here. Nothing in them is markup but backticks, a list of lines that start with "- ",
and an indented paragraph, which is shown as it stands. A sentence that starts with names of arguments and a colon
becomes an item of a list; where the argument is a field of the class, it moves to that field's own entry. A name in
backticks is linked where it is in the reference.
"""

import ast
import contextlib
import inspect
import re
from enum import Enum
from functools import cache

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.domains.python import PyXRefRole
from sphinx.ext.autodoc import AttributeDocumenter, ClassDocumenter, DataDocumenter, ModuleDocumenter
from sphinx.pycode import ModuleAnalyzer

PACKAGE = "vireid_lite"
SHOWN = 100  # characters of a constant's value; a longer one, a table, is left to the source
WIDTH = 100  # columns of a command's help


def escaped(text):
    """Return prose as reStructuredText: backticks are code, or a link where they hold a name."""
    pieces = re.split(r"`([^`]+)`", text)
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            pieces[place] = re.sub(r"([\\*|`_<>])", r"\\\1", piece)
        elif re.fullmatch(r"[A-Za-z_][\w.]*", piece):
            pieces[place] = rf"\ :py:quoted:`{piece}`\ "
        else:
            pieces[place] = rf"\ ``{piece}``\ "
    return "".join(pieces)


def cut(paragraph, names):
    """Return a paragraph's lines as [(names or None, text)]: items of a list, and the prose around them."""
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    item = rf"(?P<names>(?:{known})(?:, (?:{known}))*): " if names else r"(?P<names>(?!))"
    parts = []
    for number, line in enumerate(paragraph):
        # An item ends with the next one, or with a line that ends a sentence where none starts after it.
        ended = number and paragraph[number - 1].rstrip()[-1:] == "." and not re.match(item, line)
        starts = [0, *(found.end() for found in re.finditer(r"[.;] (?=\S)", line))]
        starts = [start for start in starts if not start or re.match(item, line[start:])]
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            text = line[start:stop].strip()
            if found := re.match(item, text):
                parts.append((found["names"].split(", "), [text[found.end() :]]))
            elif not parts or (ended and parts[-1][0]):
                parts.append((None, [text]))
            else:
                parts[-1][1].append(text)
    return [(found, re.sub(";$", ".", "\n".join(text))) for found, text in parts]


def blocks(lines):
    """Yield ("literal", lines), ("list", items) and ("prose", lines): what a docstring is made of."""
    text = inspect.cleandoc("\n".join(lines))
    for paragraph in filter(None, re.split(r"\n\s*\n", text)):
        rows = paragraph.splitlines()
        if all(row.startswith("    ") for row in rows if row):
            yield "literal", rows
            continue
        prose, items = [], []
        for row in rows:
            if row.startswith("- "):
                items.append([row[2:]])
            elif items and row.startswith("  "):
                items[-1].append(row.strip())
            else:
                prose.append(row.strip())
        if prose:
            yield "prose", prose
        if items:
            yield "list", [" ".join(item) for item in items]


def fields_of(kind):
    """Return the fields that a dataclass or a named tuple declares itself, and the reference therefore lists."""
    own = vars(kind).get("__annotations__", {})
    return {name for name in own if not name.startswith("_")} if inspect.isclass(kind) else set()


def arguments_of(found):
    """Return the names that a docstring may describe: parameters, and what the class and its bases hold."""
    kinds = [kind for kind in getattr(found, "__mro__", ()) if kind.__module__.startswith(PACKAGE)]
    names = {name for kind in kinds for name in {*vars(kind), *fields_of(kind)} if not name.startswith("_")}
    with contextlib.suppress(TypeError, ValueError):
        names |= set(inspect.signature(found).parameters)
    return names - {"self", "args", "kwargs"}


def described(kind):
    """Return {field: text} of what a class's docstring says of its own fields."""
    found = {}
    for form, part in blocks((inspect.getdoc(kind) or "").splitlines()):
        for names, text in cut(part, arguments_of(kind)) if form == "prose" else []:
            if names and set(names) <= fields_of(kind):
                found |= dict.fromkeys(names, text)
    return found


def rewrite(app, what, name, found, options, lines):
    """Turn a docstring into reStructuredText, in place."""
    if not name.startswith(f"{PACKAGE}."):
        return
    names, moved, out = arguments_of(found), described(found) if what == "class" else {}, []
    for form, part in blocks(lines):
        if form == "literal":
            out += ["::", "", *part, ""]
        elif form == "list":
            out += [f"- {escaped(item)}" for item in part] + [""]
        else:
            for named, text in cut(part, names):
                if not named:
                    out += [rf"\ {row}" for row in escaped(text).splitlines()] + [""]  # so that no row starts a list
                elif not set(named) <= set(moved):
                    first, *rest = escaped(text).splitlines()
                    out += [f"- **{', '.join(named)}**: {first}", *(f"  {row}" for row in rest), ""]
    lines[:] = out


def link(app, env, node, contnode):
    """Link a name in backticks to what the package holds under it, and leave any other word as it is."""
    if node.get("reftype") != "quoted":
        return None
    objects, target = env.get_domain("py").objects, f"{PACKAGE}.{node['reftarget']}"
    if target not in objects:
        return contnode
    entry = objects[target]
    address = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", contnode, internal=True, refuri=f"{address}#{entry.node_id}")


@cache
def assigned(module):
    """Return the names that a module's source assigns at its top level."""
    statements = ast.parse(ModuleAnalyzer.for_module(module).code).body
    targets = [target for each in statements if isinstance(each, ast.Assign) for target in each.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def complete(app, what, name, found, options, signature, returns):
    """Let a dataclass's signature be read by Sphinx, which does not know what stands for a default made anew."""
    return signature and signature.replace("<factory>", "..."), returns


class Constants(DataDocumenter):
    """What a module itself assigns, with the value where it is short and does not depend on the machine."""

    priority = DataDocumenter.priority + 1

    @classmethod
    def can_document_member(cls, member, membername, isattr, parent):
        """Return whether this is a value, of a module."""
        code = inspect.isclass(member) or inspect.isroutine(member) or inspect.ismodule(member)
        return isinstance(parent, ModuleDocumenter) and not code

    def check_module(self):
        """Return whether the module's own source assigns it: a value does not say where it was imported from."""
        return self.objpath[-1] in assigned(self.modname)

    def get_doc(self):
        """Return no docstring: it would be the one of the value's type."""
        return []

    def should_suppress_value_header(self):
        """Return whether the value is left out."""
        return not isinstance(self.object, int | float | str | tuple) or len(repr(self.object)) > SHOWN


class Fields(AttributeDocumenter):
    """Fields of dataclasses and named tuples, with what the class's docstring says of them."""

    priority = AttributeDocumenter.priority + 1

    def get_doc(self):
        """Return the field's description, or a property's own docstring."""
        field = self.objpath[-1]
        if field not in fields_of(self.parent):
            return super().get_doc()
        return [described(self.parent).get(field, "").splitlines()]


class Classes(ClassDocumenter):
    """Classes, with their base where there is one to speak of."""

    priority = ClassDocumenter.priority + 1

    def add_directive_header(self, sig):
        """Write the signature, where it says something: of an enumeration, or of any arguments, it does not."""
        if self.object.__bases__ == (object,):
            self.options = self.options.copy()
            self.options["show-inheritance"] = False
        super().add_directive_header("" if issubclass(self.object, Enum) or sig.startswith("(*args") else sig)


class Quoted(PyXRefRole):
    """A name in backticks: looked up as a Python object, and no more than code where there is none."""


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


def setup(app):
    """Register the documenters, the role, the directive and the hooks."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_autodocumenter(Constants, override=True)
    app.add_autodocumenter(Fields, override=True)
    app.add_autodocumenter(Classes, override=True)
    app.add_role_to_domain("py", "quoted", Quoted())
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", complete)
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
