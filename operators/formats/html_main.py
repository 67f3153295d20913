"""Which part of a page is its main text, by what its author says of the parts: elements, roles and usual class names.

Rules and no statistics: a person can see in the page why something was left out.
"""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

__all__ = ["is_beside", "main_element"]

# Roles of WAI-ARIA's landmarks that are not the main one, and of lists of commands.
_ROLES = frozenset({"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar"})
_ELEMENTS = frozenset({"nav", "footer", "dialog", "menu"})
# Elements that authors use as boxes; of others (a span, a paragraph) a class does not say that they stand beside.
_BOXES = frozenset({"div", "section", "ul", "ol", "header", "aside", "table", "form"})
_PLACE = "(?:site-?|page-?|main-?|top-?|bottom-?|left-?|right-?|sphinx)?"
_PART = "(?:-?(?:wrapper|container|list|links|bar|left|right|top|bottom|header|primary|main|global))?"
_BOX_NAME = re.compile(
    f"{_PLACE}(?:nav|navbar|navigation|docnav|menu|footer|breadcrumbs?|pagination|pager|skip-?links?|related|cookies?"
    "|cookie-?(?:banner|consent|notice)|share|sharing|social|social-?links|advert|advertisement|ads)"
    f"{_PART}",
    re.IGNORECASE,
)
# Boxes in the margin of a text are called so too.
_SIDEBAR_NAME = re.compile(f"{_PLACE}sidebar{_PART}", re.IGNORECASE)
_SIGNS = frozenset({"headerlink", "anchor-link", "anchorjs-link"})


def main_element(parser: LexborHTMLParser) -> LexborNode | None:
    """Return the element that says that it is the main part, or the page's only article; None when none does."""
    for selector in ("main, [role=main]", "article"):
        found = parser.css(selector)
        if len(found) == 1:
            return found[0]
    return None


def is_beside(node: LexborNode, tag: str) -> bool:
    """Tell whether an element is not part of the text: navigation, a footer, what is not shown."""
    if tag in _ELEMENTS:
        # The footer of a quotation says whose it is.
        return not (tag == "footer" and node.parent is not None and node.parent.tag == "blockquote")
    if tag != "a" and tag not in _BOXES:
        return False
    attributes = node.attributes
    names = (attributes.get("class") or "").split()
    if tag == "a":
        return not _SIGNS.isdisjoint(names)
    names.append(attributes.get("id") or "")
    return (
        (attributes.get("role") or "").lower() in _ROLES
        or "hidden" in attributes
        or any(_BOX_NAME.fullmatch(name) for name in names)
        or (any(_SIDEBAR_NAME.fullmatch(name) for name in names) and _is_mostly_links(node))
    )


def _is_mostly_links(node: LexborNode) -> bool:
    return 2 * sum(len(link.text()) for link in node.css("a")) > len(node.text(strip=True))
