"""A page taken apart, and texts that try to act on it."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</script></style></title></textarea><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\"><svg onload=\"document.title = 'owned'\">",
    "\" onmouseover=\"document.title = 'owned'\" x=\"' onfocus='document.title = 1' autofocus='",
    "<iframe srcdoc='<script>parent.document.title = 1</script>'></iframe><base href='http://evil.example/'>",
    "<meta http-equiv='refresh' content='0;url=http://evil.example/'><link rel=stylesheet href=//evil.example/x.css>",
    "<style>body { display: none }</style><!-- ]]> {{ 7 * 7 }} {% include '/etc/passwd' %} &lt;b&gt;",
    '"}]}, {"injected": "row',
    "javascript:document.title='owned'",
]


class Page(HTMLParser):
    """Every element and attribute of a page, and its text without that of styles, scripts and data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    @property
    def addresses(self) -> list[str]:
        """What elements would load or lead to from elsewhere: every src, href and the like that is no data."""
        names = ("src", "srcset", "href", "action", "poster", "data")
        found = [value for _, name, value in self.attributes if name in names]
        return [value for value in found if not value.startswith(("data:", "#"))]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.text += data
