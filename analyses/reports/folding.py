"""Sections of a page behind their headings, with a list of them that leads to each."""

import re

HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
END = "<!-- end of sections -->"


def folded(page: str) -> str:
    """The page: what stands before its first heading, the contents, and its sections, folded.

    A link of the contents opens the section it leads to, as browsers open what they have to show.

    Args:
        page: HTML whose sections begin with an <h2> each, the last of which ends at `END`.
    """
    before, *rest = HEADING.split(page)
    if not rest:
        return page
    rest[-1], after = rest[-1].split(END)
    sections = list(enumerate(zip(rest[::2], rest[1::2], strict=True), start=1))
    entries = "".join(f'<li><a href="#part-{n}">{title}</a></li>' for n, (title, _) in sections)
    parts = "".join(
        f'<details class="part"><summary><h2>{title}</h2></summary>\n'
        f'<div id="part-{n}">{content}</div></details>\n'
        for n, (title, content) in sections
    )
    return f'{before}<nav aria-label="Contents"><ol>{entries}</ol></nav>\n{parts}{after}'
