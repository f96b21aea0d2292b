"""Licences of everything that an installation of hooklearn brings along, as the installed packages state them."""

from __future__ import annotations

import re
import tomllib
from collections import deque
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from words import table

_HEAD = """# Licences

hooklearn itself is MIT. This table was made when the site was built, from the metadata of the packages installed there
(with their dependencies); a package that states no licence is listed as *not stated*. Packages of extras are needed
only where the extra is asked for."""


def page(pyproject: Path) -> str:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = {"core": project["dependencies"], **project["optional-dependencies"]}
    rows = [
        (f"`{name}`", version, licence, "core" if "core" in groups else ", ".join(f"[{g}]" for g in sorted(groups)))
        for name, (version, licence, groups) in sorted(installed(wanted).items())
    ]
    return _HEAD + "\n\n" + table(("package", "version", "licence", "needed by"), rows)


def installed(wanted: dict[str, list[str]]) -> dict[str, tuple[str, str, set[str]]]:
    """name -> (version, licence, which of the groups need it); what is not installed here is left out."""
    found: dict[str, tuple[str, str, set[str]]] = {}
    for group, requirements in wanted.items():
        queue, seen = deque((Requirement(r), "") for r in requirements), set[str]()
        while queue:
            requirement, extra = queue.popleft()
            name = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            try:
                package = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            key = f"{name}[{','.join(sorted(requirement.extras))}]"
            if key in seen:
                continue
            seen.add(key)
            found.setdefault(name, (package.version, licence_of(package.metadata), set()))[2].add(group)
            for line in package.requires or ():
                queue.extend((Requirement(line), e) for e in ("", *requirement.extras))
    return found


def licence_of(about: metadata.PackageMetadata) -> str:
    """The SPDX expression where there is one, else the classifiers, else the first line of the licence field."""
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    if named := [c for c in classifiers if c != "OSI Approved"]:
        return ", ".join(named)
    stated = (about.get("License") or "").strip()
    first = re.split(r"\n", stated)[0].strip()
    return first if 0 < len(first) <= 60 else "not stated"
