"""Launch scripts: shellcheck, the commands that they would run, and manifests.

shellcheck and JobSet's schema (kubeflow-trainer-api) are used where they are installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path("launch")
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
TRAIN = ("python", "-m", "emjax.main", "--config=configs/pretrain.py")


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def dry(script, *arguments, **environment):
    done = run(script, "--dry_run", *arguments, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(script.read_text().splitlines()) < 50


def test_local_processes():
    assert dry("local.sh", "2", *TRAIN, PORT="7") == [
        " ".join(TRAIN) + f" --coordinator=localhost:7 --processes=2 --process={i} &"
        for i in range(2)
    ]
    # All of them run, and the first code that is not 0 is that of the script.
    end = "import sys; sys.exit(3 if sys.argv[3] == '--process=1' else 0)"
    done = run("local.sh", "3", "python3", "-c", end)
    assert done.returncode == 3, done.stderr
    assert "expected a number of processes" in run("local.sh").stderr


def test_slurm_queues_a_stopped_run_again(tmp_path):
    lines = dry("slurm.sbatch", *TRAIN, SLURM_JOB_ID="9")
    assert lines[0] == "srun --kill-on-bad-exit=0 " + " ".join(TRAIN)
    assert (
        "exits with 75 (stopped, all saved) or 143" in lines[1] and lines[2] == "scontrol requeue 9"
    )
    lines = dry("slurm.sbatch", "x", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="16")
    assert lines[0] == "srun --kill-on-bad-exit=0 x --share=3/16"

    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name} "$@"\n[ {name} = scontrol ] || exit $CODE\n'
        )
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for code, again in ((0, False), (75, True), (4, False)):
        done = run("slurm.sbatch", "x", PATH=path, CODE=str(code), SLURM_JOB_ID="9")
        assert done.returncode == code
        assert ("scontrol requeue 9" in done.stdout) == again


def test_tpu_pod(tmp_path):
    options = dict(NAME="em", ZONE="z", TYPE="v5litepod-256", IMAGE="R/emjax", MOUNT="true")
    tpus = "gcloud compute tpus"
    create, train, delete = dry("tpu_pod.sh", *TRAIN, **options)
    assert create == (
        f"{tpus} queued-resources create em --zone=z --node-id=em "
        "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot "
    )
    assert train.startswith(f"{tpus} tpu-vm ssh em --zone=z --worker=all --command=true")
    assert "R/emjax\\ python\\ -m\\ emjax.main\\ --config=configs/pretrain.py" in train
    assert delete == f"{tpus} queued-resources delete em --zone=z --force --quiet "
    assert "--spot" not in dry("tpu_pod.sh", *TRAIN, **options, SPOT="")[0]
    assert "TYPE" in run("tpu_pod.sh", "x", NAME="em", ZONE="z").stderr

    # Taken away once while it trains: asked for again, and deleted when it is done.
    (tmp_path / "gcloud").write_text(f"""#!/bin/sh
echo "$@" >> {tmp_path}/log
case "$*" in
*describe*) cat {tmp_path}/state ;;
*create*) echo ACTIVE > {tmp_path}/state ;;
*ssh*) [ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; echo SUSPENDED > {tmp_path}/state; exit 255; }} ;;
esac
""")  # noqa: E501
    (tmp_path / "gcloud").chmod(0o755)
    done = run("tpu_pod.sh", *TRAIN, **options, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    did = [line.split()[3] for line in (tmp_path / "log").read_text().splitlines()]
    assert [word for word in did if word != "describe"] == 2 * ["create", "ssh", "delete"]


def test_xpk():
    (line,) = dry("xpk.sh", *TRAIN, NAME="em", CLUSTER="c", TYPE="v5litepod-16", IMAGE="R/emjax")
    assert line.startswith("xpk workload create --workload=em --cluster=c --tpu-type=v5litepod-16")
    assert "--num-slices=1 --docker-image=R/emjax --max-restarts=50" in line


@pytest.mark.parametrize("path", MANIFESTS, ids=str)
def test_manifests(path):
    manifest = yaml.safe_load(path.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (group,) = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    words = dict(word.partition("=")[::2] for word in container["command"])
    if "--share" in words:
        assert words["--share"] == f"$(JOB_COMPLETION_INDEX)/{job['completions']}"
    else:
        assert words["--processes"] == str(job["completions"])
        assert words["--process"] == "$(JOB_COMPLETION_INDEX)"
        name = manifest["metadata"]["name"]
        assert words["--coordinator"].startswith(f"{name}-{group['name']}-0-0.{name}:")


@pytest.mark.parametrize("path", MANIFESTS, ids=str)
def test_manifests_against_the_schema(path):
    """Nothing is lost on the way through the schema's classes, which drop unknown fields."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = yaml.safe_load(path.read_text())

    def known(given, read, where):
        if isinstance(given, dict):
            for name, value in given.items():
                assert name in read, f"{where}.{name}"
                known(value, read[name], f"{where}.{name}")
        elif isinstance(given, list):
            for i, (one, other) in enumerate(zip(given, read, strict=True)):
                known(one, other, f"{where}[{i}]")

    known(manifest, models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict(), path.name)
