"""The broker and the programs that are compared, as processes that are watched from outside."""
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
# The collector that costs least CPU; with only one core Java would choose it anyway.
JVM = ["java", "-XX:+UseSerialGC", "-Xms2g", "-Xmx2g"]
PATIENCE_S = 900


def on_core(core):
    """Keeps the broker and the program under test off each other, where there are two cores."""
    return ["taskset", "-c", str(core)] if len(CORES) > 1 and shutil.which("taskset") else []


def until(condition, what, program=None, seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if program and program.process.poll() is not None:
            raise SystemExit(f"{program.name} ended while {what} was awaited; see {program.log}")
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting for {what}")
        time.sleep(0.005)
    return found


class Broker:
    def __init__(self, folder):
        self.folder = folder
        self.bootstrap = None

    def start(self):
        command = [*on_core(CORES[0]), ROOT / "tools/kafka/broker", "start", self.folder]
        self.bootstrap = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]

    def stop(self):
        subprocess.run([ROOT / "tools/kafka/broker", "stop", self.folder], check=False)


class Tools:
    """The small Java programs beside the peers."""

    def __init__(self, classes):
        self.classes = classes

    def run(self, name, *arguments):
        command = [*on_core(CORES[0]), "java", "-XX:+UseSerialGC", "-Xmx1g", "-cp", self.classes, f"peers.{name}",
                   *map(str, arguments)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(output or "{}")


class Program:
    """A program under test. While it runs, a thread notes how far it is and what it has used."""

    def __init__(self, name, folder, broker):
        self.name, self.folder, self.broker = name, folder, broker
        folder.mkdir()
        self.log = folder / "log"
        self.process = None
        self.samples = []  # (seconds, events, CPU seconds)

    def launch(self, command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("THALWEG_", "KAFKA_"))}
        self.samples = []
        self.started = time.monotonic()
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen([*on_core(CORES[-1]), *command], stdin=subprocess.PIPE, cwd=self.folder,
                                            stdout=subprocess.PIPE, stderr=log, text=True, env=environment)

    def cpu(self):
        """User and system time of the whole process, in seconds."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def elapsed(self):
        return time.monotonic() - self.started

    def note(self, events):
        self.samples.append((self.elapsed(), events, self.cpu()))

    def seen(self):
        return self.samples[-1][1] if self.samples else 0

    def cpu_per_event(self, warm, events, is_live=False):
        """CPU from the first moment with `warm` events until all is done, now, in µs per event. Live: until the last
        event was read, while as much waits to be written as at the first."""
        _, first, before = next(sample for sample in self.samples if sample[1] >= warm)
        after = next(sample[2] for sample in self.samples if sample[1] >= events) if is_live else self.cpu()
        return (after - before) * 1e6 / (events - first)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Thalweg(Program):
    def __init__(self, folder, broker, binary):
        super().__init__("Thalweg", folder, broker)
        self.binary = folder / "thalweg"
        shutil.copy(binary, self.binary)  # A build may replace it while we run.
        shutil.copy(HERE / "features.yaml", folder)
        config = (HERE / "thalweg.yaml").read_text().replace("BOOTSTRAP", broker.bootstrap)
        (folder / "thalweg.yaml").write_text(config)

    def start(self):
        """Returns seconds, CPU seconds and changelog records until it is ready."""
        self.launch([self.binary, "run", "--config", "thalweg.yaml"])
        line = self.process.stdout.readline()
        ready = self.elapsed(), self.cpu()
        if not line:
            raise SystemExit(f"Thalweg did not become ready; see {self.log}")
        self.address = urllib.parse.urlparse(json.loads(line)["rest"]).netloc
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()
        metrics = self.call("GET", "/v1/metrics").decode().splitlines()
        restored = [line for line in metrics if line.startswith("thalweg_restore_records_total{")]
        return *ready, sum(int(float(line.split()[-1])) for line in restored)

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != 200 and path != "/v1/health":
            raise SystemExit(f"{path}: {answer.status} {content.decode()}")
        return content

    def _watch(self, process):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            while process is self.process and process.poll() is None:
                connection.request("GET", "/v1/stats")
                stats = json.loads(connection.getresponse().read())
                self.note(stats["sources"]["cards"]["accepted"])
                time.sleep(0.1)  # Not more often: the answers count as its work.
        except (OSError, http.client.HTTPException):
            pass  # It has been stopped.

    def settle(self, events):
        """Waits until all is committed, and no row waits to be written to the changelog."""
        until(lambda: self.seen() >= events, f"{events} events", self)

        def is_settled():
            time.sleep(0.5)
            tasks = json.loads(self.call("GET", "/v1/health"))["partitions"]
            return all(t["lag"] == 0 and t["redo_from"] == t["committed"] == t["applied"] for t in tasks)

        until(is_settled, "the last commit", self)

    def entities(self):
        return json.loads(self.call("GET", "/v1/stats"))["groups"]["spending"]["entities"]

    def values(self, users, now):
        windows, names = ["10m", "1h", "24h", "30d"], ["count", "sum", "mean", "min", "max", "stddev"]
        second, millis = divmod(now, 1000)
        request = {
            "features": [f"spending:{name}_{window}" for window in windows for name in names],
            "entities": {"user_id": users},
            "as_of": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{millis:03}Z",
        }
        results = json.loads(self.call("POST", "/v1/features/online", json.dumps(request)))["results"]
        columns = [result["values"] for result in results[1:]]
        return {user: [[columns[w * 6 + n][row] for n in range(6)] for w in range(4)]
                for row, user in enumerate(users)}

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)

    def wipe(self):
        """All that it has but its name, as a node that was given a new disk."""
        shutil.rmtree(self.folder / "data/state")


class Streams(Program):
    """A peer on Kafka Streams: `tile` or `hopping`."""

    def __init__(self, name, folder, broker, classes, topic):
        super().__init__(name, folder, broker)
        self.classes, self.topic = classes, topic

    def start(self):
        """Returns seconds, CPU seconds and changelog records until it is ready; the CPU without
        that of the start of its virtual machine, if it restores anything."""
        self.said, self.cpu_before_restore = set(), 0.0
        self.ready = None
        self.launch([*JVM, "-cp", self.classes, "peers.Main", self.name, self.broker.bootstrap, self.topic,
                     self.folder / "state"])
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()
        return until(lambda: self.ready, "its start", self)

    def _watch(self, process):
        for line in process.stdout:
            word, _, number = line.strip().partition(" ")
            try:
                if word == "events":
                    self.note(int(number))
                elif word == "restoring":
                    self.cpu_before_restore = self.cpu()
                elif word == "running" and not self.ready:
                    self.ready = self.elapsed(), self.cpu() - self.cpu_before_restore, int(number)
                else:
                    self.said.add(line.strip())
            except OSError:
                return  # It has been killed.

    def ask(self, command, answer):
        print(command, file=self.process.stdin, flush=True)
        until(lambda: answer in self.said, command, self)
        self.said.discard(answer)

    def settle(self, events):
        """Waits until all is committed, which includes what the cache holds."""
        self.ask(f"await {events}", f"committed {events}")

    def values(self, users, now):
        (self.folder / "users").write_text("\n".join(users))
        self.ask(f"values users {now} values", "written")
        lines = (self.folder / "values").read_text().splitlines()
        return {line[0]: line[1:] for line in map(json.loads, lines)}

    def stop(self):
        print("stop", file=self.process.stdin, flush=True)
        self.process.wait(timeout=90)

    def wipe(self):
        shutil.rmtree(self.folder / "state")
