# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a file that is no picture for us is by its first bytes, and what to do about it."""

from typing import NamedTuple

HEAD = 512  # bytes of a file that tell

_CONVERT = "convert it to JPEG or PNG, such as with `magick IN OUT.jpg`"
_AGAIN = "download or copy it again"
_FRAME = "take frames out of it, such as with `ffmpeg -i IN OUT-%04d.png`"


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: What it is called.
        remedy: What a user can do.
    """

    name: str
    remedy: str


_HEIC = Kind("a HEIC picture (of an iPhone, for example)", _CONVERT)
_VIDEO = Kind("a video", _FRAME)
# Of ISO base media files, by the brands after "ftyp"; the first that is among them counts.
_BRANDS = {
    b"avif": Kind("an AVIF picture", _CONVERT),
    b"avis": Kind("an AVIF picture", _CONVERT),
    b"crx ": Kind("a raw photo (CR3)", _CONVERT),
} | dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC)
# What a file begins with; the first that fits counts.
_BEGINNINGS = {
    b"\xff\x0a": Kind("a JPEG XL picture", _CONVERT),
    b"\0\0\0\x0cJXL ": Kind("a JPEG XL picture", _CONVERT),
    b"\xff\xd8\xff\xf7": Kind("a JPEG-LS picture", _CONVERT),
    b"%PDF": Kind("a PDF file", "render its pages, or use the data set `pdfs`"),
    b"8BPS": Kind("a Photoshop file", _CONVERT),
    b"gimp xcf": Kind("a GIMP file", _CONVERT),
    b"%!PS": Kind("a PostScript file", _CONVERT),
    b"\xc5\xd0\xd3\xc6": Kind("an EPS file", _CONVERT),
    b"v/1\x01": Kind("an OpenEXR picture", _CONVERT),
    b"#?RADIANCE": Kind("a Radiance HDR picture", _CONVERT),
    b"AT&TFORM": Kind("a DjVu file", "render its pages with `ddjvu -format=tiff IN OUT.tiff`"),
    b"\0\0\1\0": Kind("a Windows icon", _CONVERT),
    b"icns": Kind("an Apple icon", _CONVERT),
    b"DDS ": Kind("a DirectDraw surface", _CONVERT),
    b"SIMPLE  =": Kind("a FITS file", _CONVERT),
    b"FUJIFILMCCD-RAW": Kind("a raw photo (RAF)", _CONVERT),
    b"IIU\0": Kind("a raw photo (RW2)", _CONVERT),
    b"IIRO": Kind("a raw photo (ORF)", _CONVERT),
    b"\xd7\xcd\xc6\x9a": Kind("a Windows metafile", _CONVERT),
    b"\x89HDF": Kind("an HDF5 file", "store its pictures as PNG files"),
    b"\x93NUMPY": Kind("a NumPy array", "store it as a PNG file"),
    b"\x1aE\xdf\xa3": _VIDEO,
    b"\x1f\x8b": Kind("a gzip archive", "unpack it"),
    b"PK\3\4": Kind("a zip archive", "unpack it"),
    b"version https://git-lfs": Kind("a pointer of Git LFS, not the file", "run `git lfs pull`"),
    b"<svg": Kind("an SVG drawing", _CONVERT),
    b"<!doctype html": Kind("a web page, perhaps of a failed download", _AGAIN),
    b"<html": Kind("a web page, perhaps of a failed download", _AGAIN),
    b"<?xml": Kind("an XML file, perhaps an SVG drawing", _CONVERT),
    b"<error": Kind("an error message of a server", _AGAIN),
}


def kind_of(head: bytes) -> Kind | None:
    """What a file is, from its first `HEAD` bytes; None where they do not tell."""
    if not head.strip(b"\0"):
        return Kind("nothing but zeros" if head else "an empty file", _AGAIN)
    if head[4:8] == b"ftyp":
        end = int.from_bytes(head[:4], "big")
        brands = [head[start : start + 4] for start in (8, *range(16, end, 4))]
        return next((kind for brand, kind in _BRANDS.items() if brand in brands), _VIDEO)
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return _VIDEO
    if head[128:132] == b"DICM":
        return Kind("a DICOM file", _CONVERT)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning) or text.startswith(beginning.lower()):
            return kind
    return None
