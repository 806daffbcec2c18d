"""Opt-in discovery: a ``.pth`` file that makes Pillow know .carimg in every program.

Pillow has no discovery of third-party plugins. The line written here runs when Python starts
and only leaves a note for later: the plugin is imported when Pillow's ``Image`` module is.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from carcodec.errors import CarcodecError

__all__ = ["switch"]

# What the .pth line executes. At start-up only the class is made; once PIL.Image has been
# imported, openers that import carcodec on first use are registered.
_HOOK = """
import sys
class CarimgFinder:
    def find_spec(self, name, path=None, target=None):
        if name != "PIL.Image":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        spec = find_spec(name)
        if spec is None:
            return None
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            def plugin():
                import carcodec.plugins.pillow
                return carcodec.plugins.pillow
            module.register_open(
                "CARIMG",
                lambda file, name: plugin().CarimgImageFile(file, name),
                lambda prefix: prefix[:8] == bytes.fromhex("894341520d0a1a0a"),
            )
            module.register_save("CARIMG", lambda *call: plugin().save(*call))
            module.register_extension("CARIMG", ".carimg")
            module.register_mime("CARIMG", "image/x-carimg")
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, CarimgFinder())
"""


def switch(state: str, folder: Path | None = None) -> str:
    """Turn autoloading ``on`` or ``off``, or report the ``status``.

    ``folder`` is where the ``.pth`` file goes: by default this Python's site-packages.

    Returns:
        A sentence for the user.

    Raises:
        CarcodecError: the folder cannot be written.
    """
    path = (folder or Path(sysconfig.get_path("purelib"))) / "carcodec-pillow.pth"
    try:
        if state == "on":
            path.write_text(f"import sys; exec({_HOOK!r})\n", "utf-8")
            return f"on: {path} makes Pillow open .carimg in every program of this Python"
        if state == "off":
            path.unlink(missing_ok=True)
            return f"off: {path} is gone"
    except OSError as error:
        raise CarcodecError(f"cannot change {path}: {error.strerror}") from error
    return f"on: {path}" if path.exists() else "off"
