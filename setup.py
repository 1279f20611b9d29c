"""The one thing of a distribution that pyproject.toml cannot hold: the public address of the repository.

Whoever publishes gives it (`make dist URL=https://host/owner/jaxtune`); a build without it has no project URLs.
"""

import os
import re
import sys

from setuptools import setup

ADDRESS = os.environ.get("JAXTUNE_URL", "").rstrip("/")
if ADDRESS and not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w.~-]+)+", ADDRESS):
    sys.exit(f"JAXTUNE_URL is {ADDRESS!r}: give the repository's address, like https://host.org/owner/jaxtune")
PAGES = {
    "Homepage": "",
    "Issues": "/issues",
    "Changelog": "/blob/HEAD/CHANGELOG.md",
    "Documentation": "/tree/HEAD/docs",
}

setup(project_urls={name: ADDRESS + page for name, page in PAGES.items()} if ADDRESS else {})
