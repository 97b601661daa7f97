"""Print the versions that the current `uv.lock` resolves to, as the lines of `[tool.uv] constraint-dependencies`.

Run it after an upgrade that passed the tests (`uv lock --upgrade && uv run pytest`), and paste the result into
pyproject.toml. The lock file itself stays out of the repository, because it names the registry's host.
"""

from __future__ import annotations

import subprocess


def main() -> None:
    exported = subprocess.run(
        ["uv", "export", "--no-hashes", "--no-emit-project", "--no-annotate", "--no-header", "--quiet"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    pins = [line.strip() for line in exported if "==" in line]
    versions: dict[str, set[str]] = {}
    for pin in pins:
        name, _, rest = pin.partition("==")
        versions.setdefault(name, set()).add(rest.partition(";")[0].strip())
    for pin in pins:
        requirement, _, marker = pin.partition(";")
        name = requirement.partition("==")[0]
        # A marker matters only where the version depends on it.
        kept = f" ; {marker.strip()}" if len(versions[name]) > 1 else ""
        print(f'    "{requirement.strip()}{kept}",')


if __name__ == "__main__":
    main()
