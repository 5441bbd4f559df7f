"""The model card as one HTML page that needs nothing else, and can do nothing.

Pure: Markdown in, HTML out, by markdown-it. HTML in the Markdown is text; links, images and autolinks are not made; and the
page's own policy forbids scripts, frames, forms and anything from elsewhere.
"""

import html

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}"
    "table{border-collapse:collapse;display:block;overflow-x:auto;margin:1rem 0}"
    "th,td{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}th{background:#f3f3f3}"
    "code{font-size:.9em;white-space:pre-wrap;overflow-wrap:anywhere}"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def page(markdown: str, title: str) -> str:
    """Return the page of a card."""
    from markdown_it import MarkdownIt

    reader = (
        MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "reference"])
    )
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=reader.render(markdown))
