"""Commands that behave like Slurm's, for tests: `install(folder)` puts sbatch, squeue, sacct, scancel, srun there.

A job is a process; its state is a file. What real clusters do now and then is asked for by files in the state folder:

    fate-NAME         end the job of that name with this state, soon after its start (NODE_FAIL, TIMEOUT, …)
    start             seconds that a job waits in the queue
    forget            squeue forgets a job so many seconds after its end, and then says Invalid job id
    lag               sacct knows a job only so many seconds after its submission
    no-accounting     sacct has nothing to say
    lose-answer       the next sbatch takes the job and fails all the same
    hang-answer       the next sbatch takes the job and then answers no more
    busy              so many of the next calls of squeue fail
    deny              sbatch refuses

Words and formats are those of Slurm 22.05 (tests/live/test_slurm.py runs the real one).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATE = "SLURM_STANDIN"
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")


def install(folder: Path) -> None:
    """Write the commands; the environment variable SLURM_STANDIN names the state folder."""
    folder.mkdir()
    for command in COMMANDS:
        path = folder / command
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} {command} "$@"\n')
        path.chmod(0o755)


def state() -> Path:
    return Path(os.environ[STATE])


def setting(name: str, default: float = 0.0) -> float:
    path = state() / name
    return float(path.read_text() or 0) if path.exists() else default


def once(name: str) -> bool:
    """Whether a fault is asked for, once."""
    try:
        (state() / name).unlink()
    except FileNotFoundError:
        return False
    return True


def jobs() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(state().glob("job-*.json"), key=lambda p: (len(p.name), p))]


def update(job: dict[str, Any], **values: Any) -> None:
    job |= values
    path = state() / f"job-{job['id']}.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(job))
    temporary.replace(path)


def fail(words: str, code: int = 1) -> int:
    print(words, file=sys.stderr)
    return code


def option(arguments: list[str], name: str) -> str:
    return next((a.partition("=")[2] for a in arguments if a.startswith(f"--{name}=")), "")


def sbatch(arguments: list[str]) -> int:
    if (state() / "deny").exists():
        return fail("sbatch: error: Batch job submission failed: Invalid account or account/partition combination")
    script = Path(arguments[-1]).read_text()
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    number = len(jobs()) + 1
    job = {"id": number, "name": option(options, "job-name"), "script": script}
    job |= {"output": option(options, "output"), "chdir": option(options, "chdir")}
    update(job, state="PENDING", code=0, submitted=time.time(), ended=None, pid=None)
    runner = [sys.executable, "-S", "-E", __file__, "run", str(number)]
    nowhere = subprocess.DEVNULL  # else whoever reads sbatch's answer would wait for the job
    subprocess.Popen(runner, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    if once("hang-answer"):
        time.sleep(60)
    if once("lose-answer"):
        return fail("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(number)
    return 0


def run(number: int) -> int:
    """The job's own process, as slurmd would run it."""
    job = next(job for job in jobs() if job["id"] == number)
    time.sleep(setting("start"))
    job = next(job for job in jobs() if job["id"] == number)
    if job["state"] != "PENDING":
        return 0
    script = state() / f"script-{number}"
    script.write_text(job["script"])
    with open(job["output"], "ab") as output:
        process = subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, "SLURM_JOB_ID": str(number), "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"},
            cwd=job["chdir"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    update(job, state="RUNNING", pid=process.pid)
    began = time.monotonic()
    fate = state() / f"fate-{job['name']}"
    while process.poll() is None:
        if fate.exists() and time.monotonic() - began > 0.3:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            update(job, state=fate.read_text(), code=0, ended=time.time())
            return 0
        time.sleep(0.02)
    job = next(job for job in jobs() if job["id"] == number)
    if job["state"] == "RUNNING":
        code = process.returncode
        update(job, state="COMPLETED" if code == 0 else "FAILED", code=max(code, 0), ended=time.time())
    return 0


def squeue(arguments: list[str]) -> int:
    busy = int(setting("busy"))
    if busy:
        (state() / "busy").write_text(str(busy - 1))
        return fail("slurm_load_jobs error: Socket timed out on send/recv operation")
    forget = setting("forget", 300)
    known = [job for job in jobs() if not job["ended"] or time.time() - job["ended"] < forget]
    if wanted := option(arguments, "jobs"):
        known = [job for job in known if str(job["id"]) == wanted]
        if not known:
            return fail("slurm_load_jobs error: Invalid job id specified")
    if name := option(arguments, "name"):
        known = [job for job in known if job["name"] == name]
    for job in known:
        reason = "Priority" if job["state"] == "PENDING" else "None"
        words = {"%i": str(job["id"]), "%T": job["state"], "%r": reason}
        print("|".join(words[part] for part in option(arguments, "format").split("|")))
    return 0


def sacct(arguments: list[str]) -> int:
    if (state() / "no-accounting").exists():
        return fail("Slurm accounting storage is disabled")
    for job in jobs():
        if time.time() - job["submitted"] < setting("lag"):
            continue
        if option(arguments, "jobs") not in ("", str(job["id"])) or option(arguments, "name") not in ("", job["name"]):
            continue
        shown = "CANCELLED by 1000" if job["state"] == "CANCELLED" else job["state"]
        words = {"JobID": str(job["id"]), "State": shown, "ExitCode": f"{job['code']}:0"}
        print("|".join(words[part] for part in option(arguments, "format").split(",")))
    return 0


def scancel(arguments: list[str]) -> int:
    for job in jobs():
        if str(job["id"]) == arguments[-1] and job["state"] in ("PENDING", "RUNNING"):
            update(job, state="CANCELLED", ended=time.time())
            if job["pid"]:
                os.killpg(job["pid"], signal.SIGKILL)
    return 0


def main(command: str, *arguments: str) -> int:
    if command == "run":
        return run(int(arguments[0]))
    if command == "srun":
        words = list(arguments)
        while words[0].startswith("--"):
            words.pop(0)
        os.execvp(words[0], words)
    if command == "scontrol":
        print("here")
        return 0
    return {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel}[command](list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
