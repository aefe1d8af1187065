"""A running Thalweg on Kafka, for the benches of this folder."""
import http.client
import json
import os
import pathlib
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "thalweg/target"))
BINARY = os.environ.get("THALWEG_BIN", str(TARGET / "release/thalweg"))
FEATURES = """
entities: { user: { key: user_id, type: string } }
sources:
  cards:
    key: user_id
    event_time: { path: at, format: unix_ms }
    fields: { user_id: { type: string }, amount: { type: float64 } }
feature_groups:
  spend:
    entity: user
    source: cards
    features:
%s
"""
START = 1_767_268_800_000


def features():
    lines = []
    for window in ("10m", "1h", "24h", "30d"):
        for kind in ("count", "sum", "mean", "min", "max", "stddev"):
            of = "" if kind == "count" else ", of: amount"
            lines.append(f"      {kind}_{window}: {{ aggregate: {kind}{of}, window: {window} }}")
    return FEATURES % "\n".join(lines)


class Engine:
    def __init__(self, folder):
        self.folder = folder
        self.process = None

    def start(self):
        """Starts it; seconds until it is ready."""
        begun = time.monotonic()
        log = open(self.folder / "log.txt", "a")
        command = [BINARY, "run", "--config", str(self.folder / "thalweg.yaml")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        ready = json.loads(self.process.stdout.readline())
        took = time.monotonic() - begun
        self.host = ready["rest"].removeprefix("http://")
        self.connection = http.client.HTTPConnection(self.host, timeout=60)
        return took

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def ask(self, method, path, body=None, kind="application/json"):
        self.connection.request(method, path, body, {"content-type": kind})
        response = self.connection.getresponse()
        return response.status, response.read()

    def append(self, events):
        status, body = self.ask("POST", "/v1/events/cards", "\n".join(events), "application/x-ndjson")
        assert status == 200, body

    def counts(self):
        return json.loads(self.ask("GET", "/v1/stats")[1])

    def settle(self, read):
        while self.counts()["sources"]["cards"]["read"] < read:
            time.sleep(0.05)
        while True:
            partitions = json.loads(self.ask("GET", "/v1/health")[1])["partitions"]
            if all(p["lag"] == 0 and p["applied"] == p["committed"] for p in partitions):
                return
            time.sleep(0.05)

    def restored(self):
        text = self.ask("GET", "/v1/metrics")[1].decode()
        rows = [l for l in text.splitlines() if l.startswith("thalweg_restore_records_total{")]
        return sum(int(float(row.split()[-1])) for row in rows)


def paced(rate, over, step=1):
    """Comes back when the next `step` of `rate` a second are due, until `over` is set."""
    begun, count = time.monotonic(), 0
    while not over.is_set():
        if count < (time.monotonic() - begun) * rate:
            yield count
            count += step
        else:
            time.sleep(0.0005)


def event(n, user, rng):
    at = START + n * 5 - rng.randrange(2000)
    return f'{{"id": "e{n}", "at": {at}, "user_id": "{user}", "amount": {rng.randrange(100, 50000) / 100}}}'


def engine_at(folder, bootstrap, app, more=""):
    folder.mkdir(parents=True)
    (folder / "features.yaml").write_text(features())
    (folder / "thalweg.yaml").write_text(
        f"app: {app}\ndefinitions: [features.yaml]\nlisten: {{ rest: 127.0.0.1:0, grpc: 127.0.0.1:0, operate: 127.0.0.1:0 }}\n"
        f"memory: 1GiB\nlog: {{ kafka: {{ brokers: [\"{bootstrap}\"], partitions: 8, properties: {{ session.timeout.ms: 6000 }} }} }}\n"
        f"{more}"
    )
    return Engine(folder)


class Broker:
    def __init__(self, folder):
        self.folder, self.script = str(folder), str(ROOT / "tools/kafka/broker")

    def __enter__(self):
        """Starts it; its address."""
        started = subprocess.run([self.script, "start", self.folder], stdout=subprocess.PIPE, text=True, check=True)
        return started.stdout.strip().splitlines()[-1]

    def __exit__(self, *_):
        subprocess.run([self.script, "stop", self.folder], check=False)
