"""Figures are links to themselves in full size: on a phone they are small."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri


def link_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """``doctree-resolved``: wraps every image of ``figures/`` in a link to its file."""
    if app.builder.format != "html":
        return
    here = app.builder.get_target_uri(docname)
    for image in list(doctree.findall(nodes.image)):
        known = (
            image["uri"].startswith("figures/") and image["uri"] in app.env.images
        )  # else Sphinx has warned
        if known and not isinstance(image.parent, nodes.reference):
            name = app.env.images[image["uri"]][1]
            target = relative_uri(here, f"{app.builder.imagedir}/{name}")
            image.replace_self(nodes.reference("", "", image.deepcopy(), refuri=target, internal=True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("doctree-resolved", link_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
