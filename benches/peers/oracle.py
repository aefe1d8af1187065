"""What every value should be, from the events alone. Shares no code with the programs."""
import collections
import itertools
import json
import math
import random

LENGTHS_MS = [600_000, 3_600_000, 86_400_000, 2_592_000_000]


def exact(window, now):
    """First millisecond of Thalweg's windows: (now - length, now] up to 24 h. Longer ones begin at
    a multiple of the largest round width that is at most a thousandth of their length, which is
    30 min for 30 days."""
    start = now - LENGTHS_MS[window]
    return start + 1 if window < 3 else start // 1_800_000 * 1_800_000


def stepped(window, now):
    """First millisecond of the peers' windows: 60 steps, of which the newest holds `now`."""
    step = LENGTHS_MS[window] // 60
    return (now // step - 59) * step


class Events:
    """The events of some users, of a file that holds one event per line, in order."""

    def __init__(self, path, limit, users=None):
        self.path = path
        seen = collections.Counter()
        with open(path, "rb") as file:
            for line in itertools.islice(file, limit):
                seen[line.partition(b'"user_id":"')[2].partition(b'"')[0].decode()] += 1
        self.entities = len(seen)
        self.users = users or self._sample(seen)
        wanted = {f'"{user}"'.encode() for user in self.users}
        self.of = {user: [] for user in self.users}
        self.now = 0
        with open(path, "rb") as file:
            for line in itertools.islice(file, limit):
                self.now = max(self.now, int(line.partition(b'"timestamp":')[2].partition(b"}")[0]))
                if line.partition(b'"user_id":')[2].partition(b",")[0] in wanted:
                    event = json.loads(line)
                    found = event["metadata"]["timestamp"], float(event["payload"]["amount"])
                    self.of[event["payload"]["user_id"]].append(found)

    @staticmethod
    def _sample(seen):
        """The hottest, some by their share of the events, some by chance, and some nobody knows."""
        chance = random.Random(1)
        users = [user for user, _ in seen.most_common(10)]
        users += chance.choices(list(seen), weights=list(seen.values()), k=140)
        users += chance.sample(sorted(seen), min(140, len(seen)))
        users += [f"nobody{n}" for n in range(10)]
        return sorted(set(users))

    def differences(self, values, start_of, is_from_squares):
        """Compares `values`, by user and window, with brute force; how many, and what differs."""
        checked, different = 0, []
        for user in self.users:
            for window in range(4):
                start = start_of(window, self.now)
                amounts = [amount for time, amount in self.of[user] if start <= time <= self.now]
                wanted = features(amounts)
                for name, found, want in zip(NAMES, values[user][window], wanted, strict=True):
                    checked += 1
                    if not is_equal(name, found, want, amounts, is_from_squares):
                        different.append(f"{user} window {window} {name}: {found}, expected {want}")
        return checked, different


NAMES = ["count", "sum", "mean", "min", "max", "stddev"]


def features(amounts):
    if not amounts:
        return [0, 0.0, None, None, None, None]
    count, total = len(amounts), math.fsum(amounts)
    mean = total / count
    deviation = None
    if count > 1:
        deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in amounts) / (count - 1))
    return [count, total, mean, min(amounts), max(amounts), deviation]


def is_equal(name, found, want, amounts, is_from_squares):
    """Counts, min and max identical, floats within 1e-9 of their scale. A deviation that comes from
    a sum of squares cannot be that good: the peers' is compared as the variance that it is of."""
    if name in ("count", "min", "max") or found is None or want is None:
        return found == want and type(found) is type(want)
    largest = max(map(abs, amounts), default=0.0)
    scale = math.fsum(map(abs, amounts)) if name == "sum" else largest
    if name == "stddev" and is_from_squares:
        found, want, scale = found ** 2, want ** 2, largest ** 2
    return abs(found - want) <= 1e-9 * max(abs(found), abs(want), scale)
