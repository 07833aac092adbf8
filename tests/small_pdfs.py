# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small PDF files for tests."""


def pdf(pages, trailer=""):
    """A PDF file of pages: `(words, attributes)`.

    A word is `(x, y, text)` in points, with the size of its letters after it where it is not 12.
    """
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, (words, attributes) in enumerate(pages):
        if "MediaBox" not in attributes:
            attributes += " /MediaBox [0 0 612 792]"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R {attributes} /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F 3 0 R >> >> >>"
        )
        shown = " ".join(
            f"{size / 12} 0 0 {size / 12} {x} {y} Tm ({text}) Tj"
            for x, y, text, size in ((*word, 12)[:4] for word in words)
        )
        objects.append(
            f"<< /Length {len(shown) + 16} >>\nstream\nBT /F 12 Tf {shown} ET\nendstream"
        )
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    end += f"trailer << /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + end.encode()
