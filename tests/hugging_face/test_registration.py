"""Auto classes know ufork's, and `import ufork` stays quick."""

import json
import subprocess
import sys


def test_importing_ufork_imports_nothing_heavy():
    code = "import json, sys, ufork; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & {"torch", "transformers", "numpy", "pydantic", "tokenizers"}
