"""carcodec: a downscale-then-compress image codec with learned resampling.

>>> import carcodec
>>> encoded = carcodec.encode(Image.open("photo.png"))
>>> Path("photo.carimg").write_bytes(encoded.data)
>>> carcodec.decode(encoded.data).save("restored.png")

Importing it registers the ``.carimg`` format with Pillow.
"""

from pathlib import Path as _Path

if not _Path(__file__).with_name("engines").is_dir():
    # A checkout that is not installed: engines/ and plugins/ lie beside this folder.
    __path__.append(str(_Path(__file__).parent.parent))

from carcodec.codec import Encoded, decode, decode_array, thumbnail
from carcodec.container import Carimg, Header, read, read_header, write
from carcodec.errors import CarcodecError
from carcodec.plugins import pillow as _pillow
from carcodec.rate import Target, Trial, encode, meet

__version__ = "0.1.0"
__all__ = [
    "CarcodecError",
    "Carimg",
    "Encoded",
    "Header",
    "Target",
    "Trial",
    "decode",
    "decode_array",
    "encode",
    "meet",
    "read",
    "read_header",
    "thumbnail",
    "write",
]

_pillow.register()
