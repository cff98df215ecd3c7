"""Write what is installed in this environment as a CycloneDX 1.6 bill of materials: ``python .ci/sbom.py FILE``.

Standard library only. No time and no serial number, so that the same environment gives the same file.
"""

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

PRODUCT = "curvature-toolkit"


def bill(installed: list[Distribution]) -> dict:
    """Every distribution with its version, license and requirements; the product itself on top."""
    known = {normalized(one.metadata["Name"]): one for one in installed}
    refs = {name: f"pkg:pypi/{name}@{version(one)}" for name, one in sorted(known.items())}
    components = {name: component(name, known[name], ref) for name, ref in refs.items()}
    product = components.pop(PRODUCT, None)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**product, "type": "application"}} if product else {},
        "components": list(components.values()),
        "dependencies": [
            {"ref": ref, "dependsOn": [refs[other] for other in required(known[name]) if other in refs]}
            for name, ref in refs.items()
        ],
    }


def component(name: str, one: Distribution, ref: str) -> dict:
    """One distribution; the license where it is given as an SPDX expression."""
    found = {"type": "library", "bom-ref": ref, "name": name, "version": version(one), "purl": ref}
    license_ = one.metadata.get("License-Expression")
    return found | ({"licenses": [{"expression": license_}]} if license_ else {})


def required(one: Distribution) -> list[str]:
    """Names that a distribution requires without an extra; whether their markers hold shows in what is installed."""
    plain = [text for text in one.requires or () if not re.search(r";.*\bextra\b", text)]
    return sorted({normalized(re.match(r"[\w.-]+", text)[0]) for text in plain})


def normalized(name: str) -> str:
    """As the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version(one: Distribution) -> str:
    """Without the local part (+cpu), which no index knows."""
    return one.version.partition("+")[0]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    found = bill(list(distributions()))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found['components'])} components in {path}")
