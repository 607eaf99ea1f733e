"""ufork trains UniFork: a Y-shaped transformer that understands and generates images in one model.

`import ufork` also makes transformers' Auto classes load the folders that `ufork export` writes.
"""

from ufork.hugging_face.registration import register_when_imported

__version__ = "0.1.0"

register_when_imported()
