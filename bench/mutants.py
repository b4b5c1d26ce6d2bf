"""Prints the share of mutants that the tests noticed, by file, after `make mutants`; `mutmut show NAME` prints one."""

import json
from collections import Counter
from pathlib import Path

HOME = Path("mutants/src/maft")


def outcomes(meta: Path) -> Counter[str]:
    """Count the mutants of a file: noticed (a test failed, or took too long), unnoticed, or not run."""
    codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].values()
    return Counter("not run" if code is None else "unnoticed" if code in (0, 33) else "noticed" for code in codes)


if __name__ == "__main__":
    total: Counter[str] = Counter()
    for meta in sorted(HOME.rglob("*.meta")):
        counts = outcomes(meta)
        ran = counts["noticed"] + counts["unnoticed"]
        if ran:
            name = meta.relative_to(HOME).with_suffix("")
            print(f"{name!s:32} {counts['noticed']:5} of {ran:5} noticed ({counts['noticed'] / ran:.1%})")
            total += counts
    ran = total["noticed"] + total["unnoticed"]
    share = total["noticed"] / max(ran, 1)
    print(f"{'all':32} {total['noticed']:5} of {ran:5} noticed ({share:.1%}); {total['not run']} not run")
