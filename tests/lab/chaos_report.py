"""What a campaign in the lab leaves behind: report.json, and the page of `pollux chaos run` filled with it. Times are seconds
since the campaign began."""
import json
import time
from contextlib import contextmanager
from pathlib import Path

import paths
from redis_client import Acknowledged

PAGE, MARK = "chaos/report_page.html", "/*DATA*/null"
MAX_BUCKETS, FINEST_BUCKET = 3000, 0.25
CHECKED = [
    "Every reply of Redis on the one connection, by a model: no gap, no repeat.",
    "Redis holds every acknowledged write in the end, and so does its append-only file, read out of the disk's image.",
    "A long stream of bytes there and back over another connection, byte for byte.",
    "Both disk images, equal after the end.",
    "A host that was cut off or stood still, and was given up meanwhile, is fenced.",
    "Protection and answers again after every fault.",
]


def spread(times_ms: list[float]) -> dict:
    """By the nearest rank, as the native report has it."""
    ordered = sorted(times_ms) or [0.0]
    rank = lambda percent: round(ordered[(len(ordered) * percent + 99) // 100 - 1], 3)
    return {"count": len(times_ms), "median_ms": rank(50), "p99_ms": rank(99), "max_ms": round(ordered[-1], 3)}


class ChaosReport:
    def __init__(self, hosts: list[str], seed: int, planned: list[str], command: str):
        self._zero = time.monotonic()
        self._hosts, self._seed, self._planned, self._command = hosts, seed, planned, command
        self._roles: list[dict] = []
        self._epochs: list[list] = []
        self._faults: list[dict] = []
        self._violations: list[dict] = []

    def _now(self) -> float:
        return round(time.monotonic() - self._zero, 3)

    def role(self, host: str, role: str):
        """What a host is at, from now on: as the native report names it."""
        now = self._now()
        for span in self._roles:
            if span["host"] == host and span["to_s"] is None:
                span["to_s"] = now
        self._roles.append({"host": host, "role": role, "term": 0, "from_s": now, "to_s": None})

    def epoch(self, host: str, epoch: int):
        """The one that was committed last."""
        self._epochs.append([self._now(), self._hosts.index(host), epoch])

    def strike(self, kind: str, host: str):
        self._faults.append({"number": len(self._faults) + 1, "kind": kind, "what": kind.replace("-", " "), "host": host,
                             "struck_s": self._now()})

    def is_over(self, leader_before: str, leader: str):
        """The guest goes on, led by that one; the lost host may come back."""
        self._faults[-1]["over_s"] = self._now()
        if leader != leader_before:
            self._faults[-1]["failover"] = {"from": leader_before, "to": leader}

    def is_protected_again(self):
        self._faults[-1]["protected_again_s"] = self._now()

    def time_to_protection(self) -> float:
        """Of the last fault."""
        return self._faults[-1]["protected_again_s"] - self._faults[-1]["struck_s"]

    @contextmanager
    def violations(self, check: str):
        """Whatever fails within is one."""
        try:
            yield
        except BaseException as error:  # also an end before its time: nothing is proved then
            self._violations.append({"check": check, "evidence": f"{type(error).__name__}: {error}"})
            raise

    def write(self, folder: Path, journal: list[Acknowledged]):
        """report.json and report.html."""
        folder.mkdir(parents=True, exist_ok=True)
        data = json.dumps(self._as_json(journal))
        page = (paths.repository() / PAGE).read_text()
        if page.count(MARK) != 1:
            raise ValueError(f"{PAGE} has no place for the data")
        (folder / "report.json").write_text(data + "\n")
        (folder / "report.html").write_text(page.replace(MARK, data.replace("<", "\\u003c")))

    def _as_json(self, journal: list[Acknowledged]) -> dict:
        ended = self._now()
        for span in self._roles:
            span["to_s"] = ended if span["to_s"] is None else span["to_s"]
        answers = [(entry.acked - self._zero, (entry.acked - entry.sent) * 1000) for entry in journal]
        for fault in self._faults:
            fault.setdefault("over_s", ended)
            if "failover" in fault:
                fault["failover"]["ms"] = round((end_of_silence(answers, fault) - fault["struck_s"]) * 1000, 3)
        gaps = [later - earlier for (earlier, _), (later, _) in zip(answers, answers[1:])]
        summary = {
            "requests": len(answers), "unanswered": 0, "latency": spread([latency for _, latency in answers]),
            "failover": spread([fault["failover"]["ms"] for fault in self._faults if "failover" in fault]),
            "reprotection": spread([(fault["protected_again_s"] - fault["over_s"]) * 1000
                                    for fault in self._faults if "protected_again_s" in fault]),
            "longest_silence_ms": round(max(gaps, default=0.0) * 1000, 3)}
        return {"passed": not self._violations, "seed": self._seed, "command": self._command, "ended_s": ended,
                "hosts": self._hosts, "faults_planned": len(self._planned),
                "faults_enabled": ",".join(sorted(set(self._planned))), "checked": CHECKED, "summary": summary,
                "violations": self._violations, "faults": self._faults, "roles": self._roles,
                "epochs_columns": ["at_s", "host", "epoch"], "epochs": self._epochs,
                "latency_columns": ["from_s", "count", "median_ms", "max_ms"], "latency": buckets(answers, ended)}


def end_of_silence(answers: list[tuple[float, float]], fault: dict) -> float:
    """When the client was answered again: at the end of its longest wait since the fault struck."""
    until = fault.get("protected_again_s", float("inf"))
    times = [fault["struck_s"]] + [at for at, _ in answers if fault["struck_s"] < at <= until]
    return max(zip(times, times[1:]), key=lambda pair: pair[1] - pair[0], default=(0, fault["over_s"]))[1]


def buckets(answers: list[tuple[float, float]], ended: float) -> list[list]:
    width = max(FINEST_BUCKET, ended / MAX_BUCKETS)
    found: dict[int, list[float]] = {}
    for at, latency in answers:
        found.setdefault(int(at / width), []).append(latency)
    return [[round(number * width, 3), len(times), spread(times)["median_ms"], spread(times)["max_ms"]]
            for number, times in sorted(found.items())]
