"""What file names say, by a regular expression of somebody's.

It may come with a run that somebody else made, and matching some expressions takes longer than the world will last,
with no way to stop it within a process. So it is done in another one, which is ended when it takes too long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from sftc.errors import Refused

PATIENCE = 30.0  # seconds; a hundred thousand names take less than one
LONGEST = 1000  # of an expression
# -I: nothing but the standard library, nothing from where we stand.
_CHILD = (sys.executable, "-I", "-S", "-c")
_WORK = """
import json, re, sys
pattern, names = json.load(sys.stdin)
try:
    told = re.compile(pattern)
except (re.error, OverflowError, RecursionError) as e:
    print(json.dumps({"wrong": str(e)}))
else:
    found = [m and m.groupdict() for m in map(told.fullmatch, names)]
    print(json.dumps({"groups": list(told.groupindex), "found": found}))
"""


def told(key: str, pattern: str, names: Sequence[str], needed: str) -> list[dict[str, str | None] | None]:
    """The named groups of each of `names` that `pattern` fits as a whole; None for others.

    Args:
        key: of the pattern, for messages.
        needed: a group that it must have.

    Raises:
        Refused: it is no regular expression, lacks that group, or takes too long.
    """
    if len(pattern) > LONGEST:
        raise Refused(f"{key} has {len(pattern):,} letters; {LONGEST:,} is the most")
    try:
        done = subprocess.run(
            [*_CHILD, _WORK], input=json.dumps([pattern, list(names)]), capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Refused(
            f"{key}={pattern} takes more than {PATIENCE:g} s on {len(names):,} names: "
            "it tries the same letters in too many ways, such as a + within a +"
        ) from None
    if done.returncode != 0:
        raise Refused(f"{key}={pattern} cannot be matched ({(done.stderr.strip().splitlines() or ['?'])[-1][:120]})")
    said = json.loads(done.stdout)
    if "wrong" in said:
        raise Refused(f"{key}={pattern} is no regular expression: {said['wrong']}")
    if needed not in said["groups"]:
        raise Refused(f"{key}={pattern} lacks something: it needs a group (?P<{needed}>...)")
    return said["found"]
