"""A real S3 server for live tests: Ceph's object gateway over a cluster of its own, on loopback.

Debian's packages are unpacked into the cache (GRISTMILL_TEST_CACHE, else ~/.cache/gristmill-tests) by apt's and dpkg's
own means; nothing is installed, no root is needed, nothing outside the cache changes. One monitor, one OSD that keeps
objects in memory, one gateway, each a plain process that ends with the context. A gateway can be killed and started
again: what it said to have written is in the cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.buckets import SECRET, answering, free_port
from tests.kept import kept

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
run dir = {folder}
crash dir = {folder}
admin socket =
log file = {folder}/$name.log
mon cluster log to file = false
mon data = {folder}/mon
mon data avail crit = 0
mon data avail warn = 0
mon allow pool size one = true
paxos propose interval = 0.05
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
osd crush update on start = false
osd class update on start = false
memstore device bytes = 4G
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw data = {folder}
rgw thread pool size = 16
rgw run sync thread = false
"""


def unpacked() -> Path:
    """Ceph's files, fetched once; skips the test where they cannot be had, and says why."""
    cache = kept("ceph")
    root = cache / "root"
    if (cache / "complete").exists():
        return root
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg")):
        pytest.skip("Ceph comes from Debian's packages, and here is no apt-get")
    shutil.rmtree(cache, ignore_errors=True)
    for folder in ("lists/partial", "archives/partial", "root"):
        (cache / folder).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::lists={cache}/lists", "-o", f"Dir::Cache={cache}"]
    apt += ["-o", f"Dir::Cache::archives={cache}/archives", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    said = _fetch([*apt, "update"], cache)
    said = _fetch([*apt, "install", "--simulate", "--no-install-recommends", *PACKAGES], cache)
    wanted = [line.split()[1] for line in said.splitlines() if line.startswith("Inst ")]
    _fetch([*apt, "download", *(wanted or PACKAGES)], cache)
    for package in sorted(cache.glob("*.deb")):
        _fetch(["dpkg", "-x", str(package), str(root)], cache)
        package.unlink()
    for folder in ("lists", "archives"):
        shutil.rmtree(cache / folder)
    _fetch([str(root / "usr/bin/radosgw"), "--version"], cache, _environment(root))
    (cache / "complete").touch()
    return root


@contextmanager
def s3(folder: Path) -> Iterator[Gateway]:
    """A cluster with a user, whose keys are those of `buckets.s3_environment`, and a bucket `bucket`."""
    root, environment = unpacked(), _environment(unpacked())
    binaries, libraries = root / "usr" / "bin", _libraries(root)[0]
    fsid, osd, monitor, gateway = str(uuid.uuid4()), str(uuid.uuid4()), free_port(), free_port()
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    configuration = folder / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(fsid=fsid, monitor=monitor, gateway=gateway, folder=folder, libraries=libraries)
    )

    def command(name: str, *arguments: str) -> list[str]:
        return [str(binaries / name), "-c", str(configuration), *arguments]

    def once(arguments: Sequence[str]) -> None:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"

    running: list[subprocess.Popen[bytes]] = []

    def start(arguments: list[str]) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        running.append(subprocess.Popen(arguments, env=environment, stdout=quiet, stderr=quiet))
        return running[-1]

    try:
        where = f"v1:127.0.0.1:{monitor}"
        once([str(binaries / "monmaptool"), "--create", "--addv", "a", where, "--fsid", fsid, str(folder / "monmap")])
        once(command("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "--no-mon-config"))
        answering(monitor, start(command("ceph-mon", "-f", "-i", "a")))
        for words in (["osd", "new", osd], ["osd", "crush", "add", "osd.0", "1", "root=default", "host=here"]):
            once(["/usr/bin/python3", *command("ceph", *words)])  # its modules are for Debian's own Python
        once(command("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config"))
        start(command("ceph-osd", "-f", "-i", "0"))
        served = Gateway(gateway, lambda: start(command("radosgw", "-f", "-n", "client.rgw")))
        keys = ["--access-key", "tester", "--secret", SECRET]
        once(command("radosgw-admin", "user", "create", "--uid", "tester", "--display-name", "tester", *keys))
        _create_bucket(gateway)
        yield served
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


class Gateway:
    """The server of `s3`, at `port`."""

    def __init__(self, port: int, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.port, self._start = port, start
        self.start()

    def start(self) -> None:
        self._process = self._start()
        answering(self.port, self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _create_bucket(port: int) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    client.close()


def _libraries(root: Path) -> list[Path]:
    usr = next(root.glob("usr/lib/*-linux-gnu"))
    return [usr, usr / "ceph", root / "lib" / usr.name]


def _environment(root: Path) -> dict[str, str]:
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, _libraries(root))),
        "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
    }


def _fetch(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"Ceph cannot be had from Debian's packages: {done.stderr.strip()[-300:]}")
    return done.stdout
