"""Images of a request: base64 data URLs, and http(s) URLs of the hosts that the operator allows."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import time
import warnings
from dataclasses import dataclass
from urllib.parse import urlsplit

from PIL import Image

from dart.media import wrong_size
from dart.serve.errors import ApiError, refused
from dart.utils import one_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
ANY_HOST = "*"
PORTS = {"http": 80, "https": 443}
BLOCK_BYTES = 1 << 16
OK = 200


@dataclass(frozen=True)
class ImageLimits:
    """hosts: whose URLs are fetched; a named one may have a private address, `*` is any host with public ones.

    pixels: of one image; bytes: of one image that is fetched; seconds: for one fetch.
    """

    hosts: frozenset[str] = frozenset()
    pixels: int = 20_000_000
    bytes: int = 20_000_000
    seconds: float = 10.0


def read_image(url: str, limits: ImageLimits) -> Image.Image:
    """The image as RGB, its EXIF rotation ignored as the models' processors do. Raises ApiError."""
    data = _decoded(url) if url[:5].lower() == "data:" else _fetched(url, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.size, limits)
        return image.convert("RGB")
    except ApiError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise refused(
            f"an image cannot be read: it is truncated or none of {', '.join(FORMATS)}", "image_url"
        ) from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise ApiError(
            413,
            f"an image has {width} x {height} pixels: at most {limits.pixels} are accepted",
            "image_url",
            "too_large",
        )
    if (wrong := wrong_size(size)) is not None:
        raise refused(f"an image {wrong}", "image_url")


def _decoded(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise refused("an image's data URL is not of the form data:image/png;base64,...", "image_url")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused("an image's data URL is not valid base64", "image_url") from None


def _fetched(url: str, limits: ImageLimits) -> bytes:
    """What the URL names. It connects to the very address that was checked, and follows no redirect."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError:
        raise refused("an image's URL cannot be read", "image_url") from None
    if scheme not in PORTS or not url.isascii() or not url.isprintable() or " " in url:
        raise refused("an image's URL is neither a base64 data URL nor a plain http(s) URL", "image_url")
    if host not in limits.hosts and ANY_HOST not in limits.hosts:
        raise refused("this server fetches no images from that host: send the image as a base64 data URL", "image_url")
    ends = time.monotonic() + limits.seconds
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    try:
        address = _address(host, port or PORTS[scheme], public=host not in limits.hosts)
        link = socket.create_connection(address, timeout=limits.seconds)
        try:
            if scheme == "https":
                link = ssl.create_default_context().wrap_socket(link, server_hostname=host)
            return _read(link, parts.netloc.rpartition("@")[2], target, limits, ends)
        finally:
            link.close()
    except (OSError, http.client.HTTPException) as error:
        raise refused(f"an image cannot be fetched ({one_line(error)})", "image_url") from error


def _address(host: str, port: int, public: bool) -> tuple[str, int]:
    """An address of the host. Raises ApiError when one of them must be public and is not."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    if public and not all(_is_public(each) for each in found):
        raise refused("an image's URL leads to a private address, which this server does not fetch", "image_url")
    return min(found), port


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return address.is_global and inner.is_global and not inner.is_multicast


def _read(link: socket.socket, host: str, target: str, limits: ImageLimits, ends: float) -> bytes:
    connection = http.client.HTTPConnection(host)
    connection.sock = link
    connection.request("GET", target, headers={"Host": host, "Accept": "image/*"})
    answer = connection.getresponse()
    if answer.status != OK:
        raise refused(f"an image's URL answers with status {answer.status} (redirects are not followed)", "image_url")
    data = bytearray()
    while block := answer.read1(BLOCK_BYTES):
        data += block
        if len(data) > limits.bytes:
            raise ApiError(413, f"an image at a URL has more than {limits.bytes} bytes", "image_url", "too_large")
        if time.monotonic() > ends:
            raise refused(f"fetching an image took more than {limits.seconds:g} seconds", "image_url")
    return bytes(data)
