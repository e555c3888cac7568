"""The site's navigation has every page of docs/ and every page of the reference."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_page_is_in_the_navigation():
    spec = spec_from_file_location("make_site", ROOT / "scripts/site.py")
    site = module_from_spec(spec)
    spec.loader.exec_module(site)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} | {"index.md"}
    reference = {f"reference/{name}.md" for name in site.reference()}
    _, navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")
    assert set(re.findall(r"[\w./-]+\.md", navigation)) == pages | reference
    index = (ROOT / "docs/README.md").read_text()
    assert pages - {"index.md"} == set(re.findall(r"\(([\w-]+\.md)\)", index))
