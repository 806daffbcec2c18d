"""Rate-distortion comparison of carcodec with other codecs, on the user's own photos.

    from carcodec.compare import compare

    comparison = compare(["photos/"], metrics=["psnr", "ssim"])
    comparison.bd_rate("avif")            # per cent of AVIF's bits, by codec
    pandas.DataFrame(comparison.rows())   # every measured point
    comparison.plot("psnr").savefig("psnr.svg")
    comparison.report("report/")

A codec that is not built in is a :class:`Codec`: a name, ``encode(image, quality) -> bytes``,
``decode(bytes) -> image`` and its qualities.
"""

from carcodec.compare.codecs import STANDARD, Codec, carcodecs, standard
from carcodec.compare.comparison import Comparison, Crossover, Delta, Picture, Point
from carcodec.compare.run import compare

__all__ = [
    "STANDARD",
    "Codec",
    "Comparison",
    "Crossover",
    "Delta",
    "Picture",
    "Point",
    "carcodecs",
    "compare",
    "standard",
]
