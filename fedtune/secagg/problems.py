"""The FT9xx codes of secure aggregation: one title and one piece of advice for each.

A check that fails raises `refusal(code, what)`: the call says what happened with the offending value, this
table says what a person can do about it. Every code has a page under docs/reference/errors/.
"""

from __future__ import annotations

from typing import Final

from fedtune.errors import Problem, SecureAggregationError

__all__ = ["FIXES", "problem", "refusal"]

FIXES: Final[dict[str, str]] = {
    "FT901": "update fedtune on both sides to the same version; if it is the same, suspect the transport",
    "FT902": "nothing at this site: the message came late, twice or out of order and was not acted upon",
    "FT903": "nothing: a site restarted in mid-round counts as dropped and takes part in the next round",
    "FT904": "raise secagg.attempt_seconds if honest attempts take longer, and look for a slow site",
    "FT905": "compare the roster's fingerprint with the other sites over another channel",
    "FT906": "compare the configuration, base model and roster of the named site with this one's",
    "FT907": "do not retry before the coordinator explains it: this is what an impersonation looks like",
    "FT908": "wait for more sites, or change the site's policy (k_min, max_colluders) knowingly",
    "FT909": "do not retry before the coordinator explains it: an honest server sends consistent sets",
    "FT910": "retry without the named member, and check the version of fedtune there",
    "FT911": "nothing at this site: members did not confirm the same sets, so nothing was released",
    "FT912": "train on other samples or from another adapter; only the site's operator can release it",
    "FT913": "do not retry: the shares of this round have been given out once, for other sets or signatures",
    "FT914": "check the update that training produced, and the bounds of the encoding",
    "FT915": "use a wider ring, fewer levels or a smaller cohort",
    "FT916": "leave embeddings and output heads out of peft.target_modules, or switch secure aggregation off",
    "FT917": "do not train on it; ask the coordinator which adapter the round started from",
    "FT918": "obtain the roster's versions again, and confirm the fingerprint over another channel",
    "FT919": "restore the journal from a backup or free the disk; without it nothing is signed",
    "FT920": "retry with fresh keys: nothing was opened and every site still holds its update",
    "FT921": "go on from the adapter before this round; its updates must not be aggregated again",
    "FT922": "check the version of fedtune at the named site; if it is right, exclude the site",
    "FT923": "exclude the named site and go on from the adapter before this round",
    "FT924": "do not use the sum; compare the declared weights and the versions of the members",
    "FT925": "correct the site's policy before the site takes part",
    "FT926": "start a new attempt; if members had confirmed, count the round as burnt",
    "FT927": "keep the cohort fixed, or use groups that join and leave together",
    "FT928": "name a key that `fedtune keys identity` made, readable by its owner alone (chmod 600)",
    "FT929": "let the site sign its entry again: fedtune keys roster entry",
    "FT930": "name another file, or move the one that is there away if nobody needs it",
    "FT931": "set secagg.groups to that number, or enrol the sites with --group",
}


def problem(code: str, what: str, *, where: str = "secure aggregation") -> Problem:
    """One problem of this package, with the advice that belongs to its code."""
    return Problem(code=code, what=what, where=where, fix=FIXES[code])


def refusal(code: str, what: str, *, where: str = "secure aggregation") -> SecureAggregationError:
    """The error to raise when a check fails; nothing has been released when it is raised."""
    return SecureAggregationError(problem(code, what, where=where))
