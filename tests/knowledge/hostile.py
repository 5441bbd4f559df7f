"""Makes the documents that break things: bombs, cut and locked files, nests. Each helper says what it makes."""

import io
import zipfile
import zlib


def pdf(
    pages: list[str],
    *,
    title: str = "",
    outline: bool = False,
    password: str = "",
    table: list[list[str]] | None = None,
) -> bytes:
    """Return a PDF with a text a page; the first line of a page is an entry of its outline, where one is wanted."""
    from fpdf import FPDF

    document = FPDF()
    document.set_font("helvetica", size=12)
    if title:
        document.set_title(title)
    if password:
        document.set_encryption(owner_password=password + "-owner", user_password=password)
    for text in pages:
        document.add_page()
        first, _, rest = text.partition("\n")
        if outline:
            document.start_section(first)
        document.multi_cell(0, 8, first, new_x="LMARGIN", new_y="NEXT")
        if rest:
            document.multi_cell(0, 8, rest, new_x="LMARGIN", new_y="NEXT")
        if table:
            with document.table() as drawn:
                for row in table:
                    drawn.row(row)
            document.multi_cell(0, 8, "Below the table.")
    return bytes(document.output())


def pdf_bomb(size: int) -> bytes:
    """Return a PDF of one page whose content grows to `size` bytes of operators when it is inflated."""
    line = b"BT /F1 12 Tf 10 10 Td (bomb) Tj ET\n"
    pump = zlib.compressobj(9)
    block = line * 30_000
    content = b"".join(pump.compress(block) for _ in range(size // len(block) + 1)) + pump.flush()
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, io.SEEK_END)
    places = []
    for number, part in enumerate(parts, start=1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%b\nendobj\n" % (number, part))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(parts) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(parts) + 1, table))
    return out.getvalue()


def docx() -> bytes:
    """Return a small Word document with headings, a list, a table, hidden text and properties."""
    import docx as library
    from docx.shared import RGBColor

    document = library.Document()
    document.core_properties.title, document.core_properties.author = "The handbook", "Ada"
    document.add_heading("Pumps", 1)
    document.add_paragraph("A pump moves water.")
    document.add_heading("Care", 2)
    document.add_paragraph("Oil it.", style="List Bullet")
    document.add_paragraph("Clean it.", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ("Part", "Price", "Seal|ring", "5"), strict=True
    ):
        cell.text = text
    sly = document.add_paragraph("Seen. ")
    sly.add_run("White on white.").font.color.rgb = RGBColor(255, 255, 255)
    sly.add_run("Vanished.").font.hidden = True
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def changed_docx(name: str, content: bytes) -> bytes:
    """Return that document with other bytes in one of its parts."""
    return zipped({**unzipped(docx()), name: content})


def docx_bomb(size: int) -> bytes:
    """Return a Word document with `size` bytes of zeros in it, which take hardly any room."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as member,
    ):
        for _ in range(size // 10_000_000):
            member.write(bytes(10_000_000))
    return out.getvalue()


def unzipped(body: bytes) -> dict[str, bytes]:
    """Return the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    """Return an archive of members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def billion_laughs() -> bytes:
    """Return XML whose entities grow to gigabytes, as the body of a Word document."""
    entities = '<!ENTITY a "haha">' + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
    )
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    text = f'<w:document xmlns:w="{space}"><w:body><w:p><w:r><w:t>&j;</w:t></w:r></w:p></w:body></w:document>'
    return f'<?xml version="1.0"?><!DOCTYPE d [{entities}]>{text}'.encode()


def nested_html(depth: int) -> bytes:
    """Return a page of tags in tags."""
    return b"<!doctype html><html><body>" + b"<div>" * depth + b"deep" + b"</div>" * depth


def comments(count: int) -> bytes:
    """Return comments with no page after them: a pattern that tries each end of each would not come to an end."""
    return b"<!-- a -->" * count + b"<p>"
