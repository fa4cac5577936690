import http.server
import threading

import pytest

from polopt.errors import UsageError
from polopt.launch import topology as module
from polopt.launch.topology import Topology, topology

TWO = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


def test_one_process_needs_no_words():
    assert topology({}) is None
    assert topology({**TWO, "JAX_NUM_PROCESSES": "1"}) is None


def test_what_is_said_comes_back_through_the_environment():
    said = topology({**TWO, "POLOPT_LOST_TIMEOUT": "20"})
    assert said == Topology(coordinator="10.0.0.2:8476", count=2, index=1, lost_seconds=20)
    assert said.start_seconds == 300
    assert topology(said.environment) == said
    assert str(said) == "process 1 of 2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": None}, "--coordinator is missing"),
        ({"JAX_NUM_PROCESSES": None}, "--num-processes is missing"),
        ({"JAX_PROCESS_ID": None}, "--process-id is missing"),
        ({"JAX_PROCESS_ID": "2"}, "the 2 processes are 0 to 1"),
        ({"JAX_PROCESS_ID": "-1"}, "--process-id takes a whole number from 0 on, not '-1'"),
        ({"JAX_NUM_PROCESSES": "0"}, "--num-processes takes a whole number from 1 on"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.2"}, "takes HOST:PORT, not '10.0.0.2'"),
        ({"POLOPT_START_TIMEOUT": "soon"}, "--start-timeout takes a whole number"),
    ],
)
def test_a_part_of_it_or_nonsense_is_refused(changes, message):
    environ = {k: v for k, v in {**TWO, **changes}.items() if v is not None}
    with pytest.raises(UsageError, match=message):
        topology(environ)


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
    ],
)
def test_clusters_are_known_by_what_they_say(environ, several):
    assert (topology(environ) is not None) == several
    if several:
        assert topology(environ).coordinator is None


class Metadata(http.server.BaseHTTPRequestHandler):
    workers = ""

    def do_GET(self):
        asked = self.path.endswith("/attributes/worker-network-endpoints")
        good = asked and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if good else 404)
        self.end_headers()
        self.wfile.write(self.workers.encode() if good else b"a,b")

    def log_message(self, *args):
        pass


def test_a_slice_is_known_by_its_metadata_server(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    try:
        monkeypatch.setattr(Metadata, "workers", "10.0.0.2,10.0.0.3")
        assert topology(environ) is None  # no TPU here: nobody is asked
        monkeypatch.setattr(module, "tpu_chips", lambda: 4)
        assert topology(environ) is not None
        assert topology({**environ, "TPU_SKIP_MDS_QUERY": "1"}) is None
        monkeypatch.setattr(Metadata, "workers", "10.0.0.2")
        assert topology(environ) is None
    finally:
        server.shutdown()
        server.server_close()
    assert topology(environ) is None
