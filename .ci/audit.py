"""Ask the OSV database for known vulnerabilities of a bill of materials: ``python .ci/audit.py FILE [--strict]``.

Names and versions of public packages leave the machine, nothing else. Without a network it says that it was skipped.
What it finds is printed; only ``--strict`` makes it a failure, so that a build does not break by what others publish.
Protocol: https://google.github.io/osv.dev/post-v1-querybatch/
"""

import json
import sys
import urllib.request
from pathlib import Path

SERVICE = "https://api.osv.dev/v1/querybatch"


def vulnerabilities(purls: list[str]) -> dict[str, list[str]]:
    """Identifiers of known vulnerabilities by package; packages without any are left out."""
    body = json.dumps({"queries": [{"package": {"purl": purl}} for purl in purls]}).encode()
    request = urllib.request.Request(SERVICE, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        results = json.load(answer)["results"]
    found = {purl: [one["id"] for one in result.get("vulns", [])] for purl, result in zip(purls, results, strict=True)}
    return {purl: ids for purl, ids in found.items() if ids}


def main(path: str, strict: bool) -> int:
    """Print what is known; 1 if that is something and ``strict``."""
    purls = [one["purl"] for one in json.loads(Path(path).read_text(encoding="utf-8"))["components"]]
    try:
        found = vulnerabilities(purls)
    except (OSError, ValueError, KeyError) as error:  # URLError is an OSError; a proxy may answer with a page
        print(f"dependency audit skipped: {SERVICE} gives no answer ({error})")
        return 0
    for purl, ids in found.items():
        print(f"known vulnerability: {purl}: {', '.join(ids)}")
    print(f"dependency audit: {len(found)} of {len(purls)} packages have known vulnerabilities")
    return int(bool(found) and strict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--strict" in sys.argv))
