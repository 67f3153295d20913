"""The reference as one page of HTML, made from the OpenAPI document: no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

from producers.service.problems import KINDS

__all__ = ["CONTENT_SECURITY_POLICY", "reference"]

Json = dict[str, Any]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de } code { background: #f3f4f6; padding: .1em .3em }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem;
border-bottom: 1px solid #e5e7eb } .method { text-transform: uppercase; font-weight: 600 }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def reference(document: Json) -> str:
    """Return the page; everything that comes from the document is escaped."""
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        '<p>The same for machines: <a href="/openapi.json">openapi.json</a></p>',
    ]
    for path, operations in document["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in operations.items()]
    parts.append("<h2>Content</h2>")
    parts += [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    parts.append("<h2>Problems</h2><table><tr><th>type</th><th>status</th><th>meaning</th></tr>")
    parts += [
        f'<tr id="{kind.name}"><td><code>{kind.uri}</code></td><td>{kind.status}</td>'
        f"<td>{escape(kind.title)}: {escape(kind.meaning)}</td></tr>"
        for kind in KINDS
    ]
    parts.append("</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _operation(path: str, method: str, operation: Json) -> str:
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}</td>"
        f"<td>{escape(each.get('description', ''))} {_shape(each['schema'])}</td></tr>"
        for each in operation.get("parameters", [])
    ]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(f"<tr><td>body</td><td>{escape(media_type)}</td><td>{_shape(content['schema'])}</td></tr>")
    for status, answer in operation["responses"].items():
        shapes = [_shape(content["schema"]) for content in answer.get("content", {}).values()]
        rows.append(
            f"<tr><td>{escape(status)}</td><td>{' '.join(shapes)}</td><td>{escape(answer['description'])}</td></tr>"
        )
    return (
        f'<h2><span class="method">{escape(method)}</span> <code>{escape(path)}</code></h2>'
        f"<p><strong>{escape(operation['summary'])}.</strong> {escape(operation.get('description', ''))}</p>"
        f"<table>{''.join(rows)}</table>"
    )


def _schema(name: str, schema: Json) -> str:
    required = set(schema.get("required", []))
    rows = [
        f"<tr><td><code>{escape(field)}</code>{' (required)' if field in required else ''}</td>"
        f"<td>{escape(about.get('description', ''))} {_shape(about)}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    ]
    return (
        f'<h3 id="schema-{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        f"<table>{''.join(rows)}</table>"
    )


def _shape(schema: Json) -> str:
    """Show what a value may be: a link to its schema, or its type with its limits."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_shape(each) for each in schema["anyOf"])
    shown = {name: value for name, value in schema.items() if name not in {"title", "description", "default"}}
    return " ".join(f"<code>{escape(str(name))}: {escape(str(value))}</code>" for name, value in shown.items())
