"""The result of `why` as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from cluster.text import many, span
from orchestrator.scheduling.forecast.expected_start import Expected
from orchestrator.scheduling.forecast.why import Before, NodeUse, Obstacle, Why
from orchestrator.scheduling.snapshot import Snapshot

_SHOWN = 5


def why_reason(found: Why, snapshot: Snapshot, names: Sequence[str]) -> str:
    """Say in one line what a job asks for and what it waits for. `names`: names of the jobs, by row."""
    return f"{names[found.row]} asks for {_asks(found, snapshot)}: {found.obstacle}"


def why_lines(found: Why, snapshot: Snapshot, names: Sequence[str], nodes: Sequence[str], expected: str) -> list[str]:
    """Return about ten lines that follow `why_reason`; none for a running job.

    Args:
        names: names of the jobs, by row.
        nodes: names of the nodes for people, in the snapshot's order.
        expected: the expected start as text; '': not shown.
    """
    lines = list[str]()
    if found.obstacle is Obstacle.RUNS:
        return lines
    if found.after:
        lines.append("first must end: " + ", ".join(names[row] for row in found.after))
    if found.not_before_s > snapshot.now_s:
        lines.append(f"it may start in {span(found.not_before_s - snapshot.now_s)}")
    if found.waited_s > 0:
        lines.append(f"it has waited for {span(found.waited_s)}")
    lines.append(_format_free(found))
    lines += [_format_node(node, snapshot, names, nodes) for node in _nodes_to_show(found)[:_SHOWN]]
    if found.before:
        lines.append(_format_before(found, names))
    if found.room_on:
        lines.append(_format_room(found, snapshot, nodes))
    if expected:
        lines.append(f"expected start: {expected}")
    return lines


def _asks(found: Why, snapshot: Snapshot) -> str:
    """Describe the gang of a job; for an elastic job that waits, also the most workers that it would take."""
    sizes = snapshot.sizes.get(found.row)
    more = f" (up to {sizes[-1]})" if sizes and found.obstacle is not Obstacle.RUNS else ""
    return f"{found.gang}{more}"


def to_do(found: Why, name: str) -> str:
    """Say what the submitter can do about a waiting job; empty: nothing is needed. `name`: name of the job."""
    what = _TO_DO.get(found.obstacle, "")
    if found.before and found.obstacle in _FOR_SLOTS:
        what += "; sooner, with a higher priority: fleetune priority {job} --to N"
    return what.format(job=name)


_FOR_SLOTS: Final = (Obstacle.FULL, Obstacle.SCATTERED, Obstacle.BEHIND)
_TO_DO: Final[Mapping[Obstacle, str]] = {
    Obstacle.HELD: "fleetune resume {job} lets it go on",
    Obstacle.LIMIT: "nothing, or ask an admin for a higher limit (fleetune tenants set)",
    Obstacle.CLOSED: "ask an admin when they take something again; fleetune nodes says who has closed them, and why",
    **dict.fromkeys((Obstacle.EARLY, *_FOR_SLOTS), "nothing: it starts by itself"),
}


def format_expected(expected: Expected, known: bool = True, seen_others: bool = True) -> str:
    """Format the expected start with its uncertainty: `in 12 min (from 5 min to 20 min)`.

    Args:
        known: whether the jobs on the nodes have measured their remaining time.
        seen_others: whether jobs have ended lately, so that unknown run times are more than a guess.
    """
    if expected.start_s is None or expected.earliest_s is None:
        return "not within the next weeks, as things are"
    if expected.start_s == 0 and expected.latest_s == 0:
        return "now"
    latest = "or later" if expected.latest_s is None else f"to {span(expected.latest_s)}"
    guess = ""
    if not known and seen_others:
        guess = ", if the jobs there take as long as others did lately"
    elif not known:
        guess = ". This is a guess: no job has ended yet, and those that run have not measured their speed"
    return f"in {span(expected.start_s)} (from {span(expected.earliest_s)} {latest}){guess}"


def ends_are_known(found: Why) -> bool:
    return all(ends is not None for node in found.nodes for _, _, ends in node.holders)


def _format_free(found: Why) -> str:
    usable = sum(node.usable for node in found.nodes)
    if not found.nodes:
        return "there is no node that it could use"
    if not usable:
        return "no node that it could use takes anything new"
    unit = "GPUs" if found.gang.gpus_per_worker else "CPUs"
    where = "the 1 node" if usable == 1 else f"the {usable} nodes"
    most = f", {found.most_on_one} of them on one node" if usable > 1 and found.free else ""
    foreign = sum(node.foreign for node in found.nodes)
    outside = f"; {foreign} are held outside Fleetune" if foreign else ""
    return f"{found.free} {unit} are free on {where} that it could use{most}{outside}"


def _nodes_to_show(found: Why) -> list[NodeUse]:
    """Return the nodes that the job will start on, then the others, those with most free slots first."""
    rest = sorted((node for node in found.nodes if node.node not in found.room_on), key=lambda node: -node.free)
    return [node for node in found.nodes if node.node in found.room_on] + rest


def _format_node(node: NodeUse, snapshot: Snapshot, names: Sequence[str], nodes: Sequence[str]) -> str:
    held = [f"{names[row]} has {slots}{_until(ends, snapshot.now_s)}" for row, slots, ends in node.holders[:_SHOWN]]
    more = len(node.holders) - _SHOWN
    held += [many(more, "more job")] if more > 0 else []
    held += [f"{node.foreign} outside Fleetune"] if node.foreign else []
    state = "" if node.usable else " (takes nothing new)"
    return f"  {nodes[node.node]}{state}: {node.free} of {node.size} free; " + (", ".join(held) or "nobody there")


def _until(ends: float | None, now_s: float) -> str:
    return " (end unknown)" if ends is None else f" for about {span(max(ends - now_s, 0.0))} more"


def _format_before(found: Why, names: Sequence[str]) -> str:
    counts = Counter(reason for _, reason in found.before)
    first = ", ".join(names[row] for row, _ in found.before[:_SHOWN]) + (", ..." if len(found.before) > _SHOWN else "")
    if len(counts) == 1:
        reasons = next(iter(counts)).value
    else:
        reasons = ", ".join(f"{counts[reason]}: {reason}" for reason in Before if counts[reason])
    many = "1 job goes" if len(found.before) == 1 else f"{len(found.before)} jobs go"
    return f"{many} before it ({reasons}): {first}"


def _format_room(found: Why, snapshot: Snapshot, called: Sequence[str]) -> str:
    nodes = ", ".join(called[node] for node in found.room_on[:_SHOWN])
    nodes += ", ..." if len(found.room_on) > _SHOWN else ""
    others = "if nobody went before it, it" if found.before else "it"
    if found.room_at_s is None:
        return f"{others} would start on {nodes} once the jobs there end, and these do not say when"
    return f"{others} would have room on {nodes} in {span(found.room_at_s - snapshot.now_s)}"
