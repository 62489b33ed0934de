"""Sphinx's settings; ``build.py`` collects the sources and calls it."""

import vlkit

project, author = "vlkit", "The vlkit developers"
copyright = author
release = version = vlkit.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # `make demo` runs them; its copies are shown where there are any
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_use_ivar = True
napoleon_use_rtype = False

highlight_language = "none"  # a block says what it is; those that do not are of a shell
html_theme = "furo"
html_title = f"vlkit {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app):
    app.connect("autodoc-process-docstring", write_tables, priority=100)  # before napoleon


def write_tables(app, what, name, subject, options, lines):
    """Markdown's tables, as docstrings have them, as reStructuredText's."""
    done = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|"):
            done.append(line)
        elif not set("".join(cells)) <= set("-: "):
            indent = line[: len(line) - len(line.lstrip())]
            if not (done and done[-1].startswith(f"{indent}     ")):
                done += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            marks = ["* -", *["  -"] * (len(cells) - 1)]
            done += [f"{indent}   {mark} {cell}" for mark, cell in zip(marks, cells, strict=True)]
    lines[:] = done
